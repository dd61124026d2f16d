"""Trains one pair of the testbed's models (about 45 minutes on a core of its own) and writes it with its model card.

python jobs/build_testbed.py --pair shapes
python jobs/build_testbed.py --pair shapes --unclip    # its image-conditioned sibling, from the published pair
python jobs/build_testbed.py --pair fashion --fashion-root DIR   # the four original .gz files
"""

import argparse
from pathlib import Path

from counterpoise.testbed import MODELS
from counterpoise.testbed.build import build
from counterpoise.testbed.pairs import make_pair
from counterpoise.testbed.unclip import build_unclip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", required=True, choices=("shapes", "fashion"))
    parser.add_argument("--out", type=Path, help="default: where the package looks for it")
    parser.add_argument("--work", type=Path, help="checkpoints; default: build/testbed/PAIR")
    parser.add_argument("--budget", type=float, default=1.0, help="scales the steps of every stage (default 1.0)")
    parser.add_argument("--fashion-root", type=Path)
    parser.add_argument("--unclip", action="store_true", help="train the image-conditioned model of a published pair")
    args = parser.parse_args()
    work = args.work or Path("build/testbed") / args.pair
    pair, out = make_pair(args.pair, args.fashion_root), args.out or MODELS / args.pair
    work.mkdir(parents=True, exist_ok=True)
    print((build_unclip if args.unclip else build)(pair, out, work, budget=args.budget))
