"""Fills a pool in a process of its own, to be killed: ``python fill_pool.py MODELS STORE KIND``."""

import sys
from pathlib import Path

import numpy as np

from counterpoise.config import Selection
from counterpoise.data.table import TableFiles, read_view
from counterpoise.execution import graph
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.feedback import classifier as feedback
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.resolve import resolve
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.request import PlanRequest
from tiny import make_experiment
from toy_bias import make_view

NAMES = LabelSpace(("star", "disc"), ("red", "blue"))
FEW = np.array([[48, 16], [8, 40]])
WANTED = {"plain": np.array([[80, 40], [24, 96]]), "guided": FEW, "conditioned": FEW}
SHARDS = {"plain": 30, "guided": 14, "conditioned": 14}  # the last is far from made when a run that has begun is killed


def sections(kind, models):
    """What makes the pool's images, so that a shard takes a third of a second or so; nothing scores the latter two."""
    if kind == "plain":
        return {"generator": {"model": f"{models}/diffusion", "num_inference_steps": 40}}
    if kind == "conditioned":
        generator = {"model": f"{models}/unclip", "num_inference_steps": 40, "condition": {"dropout": 0.5}}
        return {"generator": generator, "scorer": None}
    return {
        "scorer": None,
        "generator": {"model": f"{models}/diffusion", "num_inference_steps": 20},
        "feedback": {"stage": "teacher", "criterion": "hardness", "scale": 0.1, "every": 2},
        "stages": [{"name": "teacher", "data": ["real"]}, {"name": "final", "data": ["real", "synthetic"]}],
        "training": {"image_size": 16, "batch_size": 8, "epochs": 2},
    }


def pool_of(kind, models, store, workers):
    """The pool; with a classifier that guides, this is trained if it is not there."""
    settings = {"pool": {"shard_size": 8, "sampling": {"workers": workers}}}
    experiment = make_experiment(Path(models), store, **sections(kind, models), **settings)
    store = open_store(store)
    files = TableFiles("real")
    stored = store.exists(files.record)  # as an import, which a run does once
    real = read_view(store, files) if stored else make_view(store, "real", [[9, 3], [3, 9]], names=NAMES)
    teacher = None
    if experiment.feedback:
        teacher = feedback.of_stage(experiment, {"real": real}, real, "teacher")
        graph.run_all(feedback.guide_fits(experiment, {"real": real}, real, "teacher"))
        teacher.compute_statistics(real)
    return Pool.of(experiment, NAMES, store, resolve(experiment.prompts, NAMES, store), real, teacher)


def fill(kind, models, store, workers):
    """Realizes a plan of the plan."""
    request = PlanRequest("method", "plan", WANTED[kind], 0, Selection(), max_quarantined=0.05)
    return select.select_images(pool_of(kind, models, store, workers), [request])


if __name__ == "__main__":
    models, store, kind = sys.argv[1:]
    fill(kind, models, store, 2)
