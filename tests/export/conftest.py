"""A job whose pool is filled without Ray: two plans that share images, on a piece of the testbed."""

from pathlib import Path

import pytest

from counterpoise.config.compose import load
from counterpoise.synthesis.pool import actors
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.in_process import sampler_here
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.workflow.run import Run

EXPERIMENT = """
name: tiny
method: two
store: {store}
tracking: {{enabled: false}}
data: {data}
generator: {{model: {models}/diffusion, num_inference_steps: 2}}
prompts: {{template: "{template}"}}
pool: {{shard_size: 4}}
plans:
  few: {{strategy: custom, counts: {{ring: {few}}}}}
  many: {{strategy: custom, counts: {{circle: {few}, ring: {many}}}}}
stages: [{{name: only, data: [real, few, many]}}]
"""
SMALL = "per_cell: {train: 3, validation: 1, test: 1}"
TESTBED = f"{{adapter: testbed, classes: [circle, ring], groups: [red, blue], {SMALL}}}"
NO_GROUPS = f"{{adapter: testbed, classes: [circle, ring], group: null, {SMALL}}}"


def fill(job):
    """Commits two shards of each cell: more than the plans want."""
    for pool in job.pools.values():
        pool.prepare()
        with sampler_here(SamplingSpec.of(pool)) as sample:
            for label in range(2):
                for group in range(job.dataset.names.shape[1]):
                    for number in range(2):
                        shard = Shard(label, group, number)
                        actors.commit(pool.store, pool.digest, shard, sample(shard), {"device": "cpu"})


@pytest.fixture(scope="package")
def config(tiny_models, tmp_path_factory):
    """Makes an experiment file with a filled pool: ``groups`` or not, and its store."""
    made = {}

    def config(groups=True, store=None, data=None):
        key = (groups, store, data)
        if key not in made:
            folder = tmp_path_factory.mktemp("experiment")
            text = EXPERIMENT.format(
                store=store or folder / "store",
                data=data or (TESTBED if groups else NO_GROUPS),
                models=tiny_models,
                template="a {group} {label}" if groups else "a {label}",
                few="{red: 3}" if groups else 3,
                many="{red: 6, blue: 5}" if groups else 6,
            )
            file = Path(folder, "tiny.yaml")
            file.write_text(text)
            with Run(load(str(file))) as job:
                fill(job)
            made[key] = file
        return made[key]

    return config


@pytest.fixture
def job(config):
    """Opens the job of the file that :func:`config` makes."""
    opened = []

    def job(**options):
        opened.append(Run(load(str(config(**options)))))
        return opened[-1].__enter__()

    yield job
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def images_of():
    """(class, group) -> its images as pixels, sorted, of a view: what must survive any way out and in again."""
    from counterpoise.storage.codec import decode_image

    def images_of(view):
        found = {}
        for position, data in view.images():
            label, group = int(view.labels[position]), int(view.groups[position])
            names = view.names.classes[label], view.names.groups[group] if group >= 0 else None
            found.setdefault(names, []).append(decode_image(data).tobytes())
        return {cell: sorted(images) for cell, images in found.items()}

    return images_of
