"""Trains one pair of the testbed's models (about 45 minutes on a core of its own) and writes it with its model card.

python jobs/build_testbed.py --pair shapes
python jobs/build_testbed.py --pair fashion --fashion-root DIR   # the four original .gz files
"""

import argparse
from pathlib import Path

from counterpoise.testbed import MODELS
from counterpoise.testbed.build import build
from counterpoise.testbed.pairs import make_pair

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", required=True, choices=("shapes", "fashion"))
    parser.add_argument("--out", type=Path, help="default: where the package looks for it")
    parser.add_argument("--work", type=Path, help="checkpoints; default: build/testbed/PAIR")
    parser.add_argument("--budget", type=float, default=1.0, help="scales the steps of every stage (default 1.0)")
    parser.add_argument("--fashion-root", type=Path)
    args = parser.parse_args()
    work = args.work or Path("build/testbed") / args.pair
    build(make_pair(args.pair, args.fashion_root), args.out or MODELS / args.pair, work, args.budget)
