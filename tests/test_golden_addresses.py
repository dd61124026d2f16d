"""No address changes by accident: digests of shipped experiments, held against those of tests/golden_addresses.json.

Whatever has another address is sampled, trained or measured anew, and what the stores of all users hold is lost to
them. So a change of an address is a decision: raise the format that it belongs to, or say in the commit why, then run
``python tests/test_golden_addresses.py``, which writes the file anew.

Nothing is sampled or trained. Plans take the first images of each cell, as if all of them were usable: their views
name these images without the pool holding any. The procedural world is drawn by a renderer of integers, because the
fingerprint of its own one, which is in the address of the table, may depend on how a CPU rounds.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from counterpoise.config import compose
from counterpoise.data import dataset
from counterpoise.data.procedural import world
from counterpoise.storage.schema import VIEW
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.feedback import classifier as feedback
from counterpoise.synthesis.pool.address import Shard, seed
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.resolve import resolve
from counterpoise.synthesis.selection.strategies import target_counts
from counterpoise.training import stages
from counterpoise.workflow import outcomes
from counterpoise.workflow import realism as likeness

GOLDEN = Path(__file__).parent / "golden_addresses.json"
SMALL = [
    "data.per_cell={train: 60, validation: 12, test: 12}",
    "tracking.enabled=false",
    "realism.extractor=clip",  # others depend on what is on the machine, or on trained weights
]
CASES = {
    "experiments/demo": ["erm", "usb", "ffr_dfr", "dfr", "jtt", "lff", "group_dro", "synaug_groups"],
    "experiments/shapes_contextual": None,  # all of the file's methods
    "experiments/feedback_ablation": None,
    "reproductions/aim_fair_tables": None,
    "reproductions/synaug_long_tail": ["erm", "synaug_base", "synaug", "feedback_mixture"],
}


def integer_image(shape, color, background, *, rendering, seed, start=0):
    """uint8 (n, 32, 32, 3): another one for each address and each set of factors, the same on every machine."""
    number = start + np.arange(len(shape), dtype=np.int64)
    value = 101 * np.asarray(shape) + 31 * np.asarray(color) + 7 * np.asarray(background) + 3 * number + seed
    ramp = np.arange(32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3)
    return ((value[:, None, None, None] + ramp * (2 if rendering == "web" else 1)) % 256).astype(np.uint8)


def first_images(counts, pool, skip):
    """The view of a plan that takes the first images of each cell after ``skip``, all of which are usable."""
    rows = [
        (label, group, index)
        for label, group in np.argwhere(counts).tolist()
        for index in range(skip, skip + counts[label, group])
    ]
    size = pool.shard_size
    count, nothing = len(rows), [0] * len(rows)
    columns = {
        "id": [f"{pool.digest}-{label}-{group}-{index}" for label, group, index in rows],
        "label": [label for label, _, _ in rows],
        "group": [group if pool.names.groups else -1 for _, group, _ in rows],
        "split": pa.array(["train"] * count, pa.string()).dictionary_encode(),
        "source": pa.array(["synthetic"] * count, pa.string()).dictionary_encode(),
        "key": pa.array(
            [Shard(label, group, index // size).key(pool.digest) for label, group, index in rows], pa.string()
        ).dictionary_encode(),
        "row": [index % size for _, _, index in rows],
        "image_offset": nothing,
        "image_length": nothing,
        "image_sha256": [bytes(16)] * count,
    }
    return ImageView(pool.store, pool.names, pa.table(columns, VIEW))


class Addresses:
    """The addresses of the experiments of one file."""

    def __init__(self, config, methods, folder):
        self.experiments = compose.load(config, [*SMALL, f"store={folder / 'store'}"], methods=methods, seeds=[0, 3])
        self.store = open_store(self.experiments[0].store)
        loaded = dataset.load(self.experiments[0].data, self.store)
        self.table, self.all = loaded.key, loaded.view
        self.train, self.validation, self.test = (loaded.view.where(split=s) for s in ("train", "validation", "test"))

    def to_json(self):
        methods = {}
        for experiment in self.experiments:
            found = self._method(experiment)
            methods.setdefault(experiment.method, {}).update({f"seed {experiment.seed}": found})
        return {"table": self.table, "view": self.all.digest, "methods": methods}

    def _method(self, experiment):
        found, views = {}, {"real": self.train}
        if experiment.plans:
            pool = self._pool(experiment, views)
            views |= self._planned(experiment, pool)
            found["pool"] = {"digest": pool.digest, "image": seed(pool.recipe.noise, 1, 0, 5, 2)}
            found["plans"] = {name: views[name].digest for name in experiment.plans}
            if experiment.feedback:
                found["second round"] = self._pool(experiment, views, experiment.stages[-1].name).digest
        fits = stages.tasks(experiment, views, self.validation)
        found["stages"] = {fit.stage.name: fit.digest for fit in fits}
        found["masks"] = {fit.stage.name: fit.gradients.digest for fit in fits if fit.gradients}
        found["result"] = outcomes.MethodRun(experiment, views, self.validation, self.test, self.store).key
        if experiment.plans:
            made = {experiment.method: [views[name] for name in experiment.plans]}
            extractor = likeness.identify_extractor(experiment, None)
            (found["realism"],) = likeness.comparisons(experiment, self.train, made, extractor)
        return {key: value for key, value in found.items() if value}

    def _pool(self, experiment, views, stage=None):
        prompts, teacher = resolve(experiment.prompts, self.all.names, self.store), None
        if experiment.feedback:
            teacher = feedback.of_stage(experiment, views, self.validation, stage or experiment.feedback.stage)
        return Pool.of(experiment, self.all.names, self.store, prompts, self.train, teacher)

    def _planned(self, experiment, pool):
        counts = {
            name: target_counts(plan, self.train.counts, self.all.names) for name, plan in experiment.plans.items()
        }
        return {name: first_images(counts[name], pool, plan.skip) for name, plan in experiment.plans.items()}


def addresses(config, folder):
    """All addresses of a case, as in the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "render", integer_image)
        return Addresses(config, CASES[config], folder).to_json()


@pytest.mark.parametrize("config", CASES)
def test_no_address_has_changed(config, tmp_path):
    golden = json.loads(GOLDEN.read_text())
    assert addresses(config, tmp_path) == golden[config]


def test_every_kind_of_address_is_held():
    """What the cases cover: a file without, say, a mask would guard none."""
    golden = json.loads(GOLDEN.read_text())
    found = [kinds for case in golden.values() for seeds in case["methods"].values() for kinds in seeds.values()]
    for kind in ("pool", "plans", "second round", "stages", "masks", "result", "realism"):
        values = {json.dumps(kinds[kind]) for kinds in found if kind in kinds}
        assert len(values) > 1, f"{kind}: only {values}"


if __name__ == "__main__":
    written = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as place:
            written[case] = addresses(case, Path(place))
    GOLDEN.write_text(json.dumps(written, indent=1) + "\n")
