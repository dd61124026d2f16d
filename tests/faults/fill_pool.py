"""Fills a pool in a process of its own, to be killed: ``python fill_pool.py MODELS STORE``. Prints what it did."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from counterpoise.store import open_store
from counterpoise.synthesis import select
from counterpoise.synthesis.pool import Pool
from counterpoise.synthesis.resolve import resolve
from counterpoise.table import Names
from tiny import make_experiment

NAMES = Names(("star", "disc"), ("red", "blue"))
WANTED = np.array([[80, 40], [24, 96]])
SHARDS = 30  # enough that the last is far from made when a test kills a run that has begun


def fill(models, store, workers):
    """Realizes a plan of the plan: shards of a third of a second or so each."""
    experiment = make_experiment(
        Path(models),
        store,
        generator={"model": f"{models}/diffusion", "num_inference_steps": 40},
        pool={"shard_size": 8, "sampling": {"workers": workers}},
    )
    pool = Pool(experiment, NAMES, open_store(store), resolve(experiment.prompts, NAMES, open_store(store)))
    return select.realize(pool, {"plan": WANTED})


if __name__ == "__main__":
    done = fill(sys.argv[1], sys.argv[2], 2)
    print(json.dumps({"sampled": done.sampled, "reused": done.reused, "fresh": sorted(done.fresh)}))
