"""A biased toy dataset: the class is the direction of a faint bar, the group is the colour of the ground."""

import numpy as np

from counterpoise.config import Experiment
from counterpoise.storage.codec import encode_image
from counterpoise.storage.schema import LabelSpace
from image_table import store_images

NAMES = LabelSpace(("lying", "standing"), ("red", "blue"))
SIZE = 16


def draw(label, group, random, contrast=60):
    """uint8 (16, 16, 3): an 8 px bar somewhere on a noisy ground."""
    image = np.zeros((SIZE, SIZE, 3)) + ((130, 60, 60), (60, 60, 130))[group] + random.normal(0, 12, (SIZE, SIZE, 3))
    height, width = (2, 8) if label == 0 else (8, 2)
    top, left = random.integers(0, SIZE - height), random.integers(0, SIZE - width)
    image[top : top + height, left : left + width] += contrast
    return image.clip(0, 255).astype(np.uint8)


def make_view(store, key, counts, seed=0, synthetic=False, names=NAMES, contrast=60):
    """A view of ``counts[label][group]`` images, in random order."""
    random = np.random.default_rng(seed)
    cells = [(y, b) for y, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)]
    random.shuffle(cells)
    images = [encode_image(draw(y, b, random, contrast)) for y, b in cells]
    labels, groups = [y for y, _ in cells], [b if names.groups else -1 for _, b in cells]
    return store_images(store, key, images, labels, groups, names, source="synthetic" if synthetic else "real")


def make_experiment(store, stages=({"name": "fit", "data": ["real"]},), seed=0, **training):
    """An experiment in that store whose stages are trained on "real" and on the plan "extra"."""
    return Experiment.model_validate(
        {
            "name": "toy",
            "store": store.uri,
            "method": "toy",
            "seed": seed,
            "data": {"adapter": "testbed"},
            "generator": {"model": "none"},
            "plans": {"extra": {"strategy": "balanced"}},
            "training": {"image_size": SIZE, "epochs": 2, "batch_size": 32, "optimizer": {"lr": 3e-3}} | training,
            "stages": list(stages),
        }
    )


def fit_in_group(rank, size, meeting_point, tasks):
    """One process of a torch.distributed group that fits these tasks; for multiprocessing's spawn."""
    import torch
    import torch.distributed as dist

    from counterpoise.training.engine import fit
    from counterpoise.training.engine.process_group import Worker

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=size)
    for task in tasks:
        fit.fit(task, Worker(rank, size, torch.device("cpu")))
    dist.destroy_process_group()


if __name__ == "__main__":  # a fit in a process of its own, for tests that kill it: toy_bias.py PICKLE
    import pickle
    import sys
    from pathlib import Path

    import torch

    from counterpoise.training import stages

    torch.set_num_threads(1)
    experiment, views, validation = pickle.loads(Path(sys.argv[1]).read_bytes())
    print(stages.run(experiment, views, validation)[-1].digest)
