"""Addresses: everything that decides an image is in them, and nothing else."""

import json
import shutil

import numpy as np
import pytest

from counterpoise.config import Generator
from counterpoise.errors import ConfigError, ModelError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool.address import Shard, pinned, seed
from tiny_families import save, save_adapter


def test_seeds_are_63_bits_and_differ():
    seeds = {
        seed("digest", label, group, index, attempt)
        for label in range(3)
        for group in range(3)
        for index in range(100)
        for attempt in range(3)
    }
    assert len(seeds) == 2700
    assert all(0 <= one < 2**63 for one in seeds)
    assert max(seeds) > 2**62
    assert seed("digest", 1, 2, 3, 0) != seed("other", 1, 2, 3, 0)


def test_a_seed_of_today_is_a_seed_of_tomorrow():
    """Changing this number makes every stored pool unreachable."""
    assert seed("0123456789abcdef", 1, 2, 3, 0) == 3693236817475680733


def test_keys_there_and_back():
    shard = Shard(3, 0, 1234567)
    assert Shard(3, 0, 7).key("abc") == "pool/abc/3-0/000007.parquet"
    assert Shard.from_key(shard.key("abc")) == shard
    assert Shard.from_key("pool/abc/generation.json") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"generator": {"num_inference_steps": 4}},
        {"generator": {"guidance_scale": 3.0}},
        {"generator": {"scheduler": "DDPMScheduler"}},
        {"generator": {"height": 32}},
        {"generator": {"width": 32}},
        {"generator": {"seed": 1}},
        {"generator": {"dtype": "float16"}},
        {"prompts": {"template": "a {group} {label}"}},
        {"prompts": {"labels": {"disc": "plate"}}},
        {"prompts": {"negative": "blur"}},
        {"prompts": {"template": "a photo of a {modifier} {group} {label}", "modifiers": ["big", "small"]}},
        {"prompts": {"contextual": {"number": 2, "attributes": {"light": ["at dawn", "at noon"]}}}},
        {"pool": {"shard_size": 16}},
        {"pool": {"shard_size": 8, "max_attempts": 2}},
        {"scorer": None},
        {"names": LabelSpace(("star", "disc", "ring"), ("red", "blue"))},
        {"names": LabelSpace(("disc", "star"), ("red", "blue"))},
    ],
    ids=str,
)
def test_what_decides_an_image_is_in_the_digest(make_pool, changes):
    model = make_pool().spec.generator.model
    if "generator" in changes:
        changes = {"generator": {"model": model, "num_inference_steps": 3, **changes["generator"]}}
    assert make_pool(**changes).digest != make_pool().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": {"clip_margin": 0.1, "max_draw": 5}},
        {"plans": {"synthetic": {"strategy": "asb"}}},
        {"seed": 7},
        {"method": "other"},
        {"pool": {"shard_size": 8, "sampling": {"workers": 2, "num_cpus": 0.5}, "max_quarantined": 1}},
        {"training": {"epochs": 3}},
    ],
    ids=str,
)
def test_what_does_not_is_not(make_pool, changes):
    assert make_pool(**changes).digest == make_pool().digest


def test_other_weights_are_another_pool_and_moved_ones_are_not(make_pool, tiny_models, tmp_path):
    shutil.copytree(tiny_models / "diffusion", tmp_path / "moved")
    generator = {"model": str(tmp_path / "moved"), "num_inference_steps": 3}
    assert make_pool(generator=generator).digest == make_pool().digest
    (tmp_path / "moved" / "README.md").write_text("# a model card")
    assert make_pool(generator=generator).digest == make_pool().digest
    weights = tmp_path / "moved" / "unet" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert make_pool(generator=generator).digest != make_pool().digest


def test_an_adapter_is_in_the_digest_and_where_it_lies_is_not(make_pool, tmp_path):
    base, folder = make_pool(), save_adapter("sd-epsilon", tmp_path / "adapter")

    def section(folder, **changes):
        adapter = {"model": str(folder), "weights": "adapter.safetensors", "encoder": "image_encoder", **changes}
        model = base.spec.generator.model
        return {"model": model, "num_inference_steps": 3, "condition": {"adapter": adapter}}

    def adapted(folder, **changes):
        return make_pool(generator=section(folder, **changes))

    first = adapted(folder)
    assert first.digest != base.digest
    assert "adapter" not in base.generation["generator"]
    assert adapted(folder, scale=0.5).digest != first.digest
    shutil.copytree(folder, tmp_path / "moved")
    assert adapted(tmp_path / "moved").digest == first.digest
    assert first.spec.generator == Generator.model_validate(section(folder))  # a folder is at no commit
    for file in ("adapter.safetensors", "image_encoder/model.safetensors"):
        weights = tmp_path / "moved" / file
        before = weights.read_bytes()
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert adapted(tmp_path / "moved").digest != first.digest
        weights.write_bytes(before)
    for changes in ({"weights": "none.safetensors"}, {"encoder": "none"}, {"model": str(tmp_path / "none")}):
        with pytest.raises(ModelError, match=rf"generator\.condition\.adapter\.{next(iter(changes))}"):
            adapted(folder, **changes)


def test_what_comes_from_the_hub_is_loaded_at_the_commit_of_the_digest():
    adapter = {"model": "a/b", "weights": "c.safetensors", "encoder": "d"}
    generator = Generator(model="e/f", revision="main", condition={"adapter": adapter})
    made = {"weights": {"id": "e/f", "revision": "1" * 40}, "adapter": {"id": "a/b", "revision": "2" * 40}}
    found = pinned(generator, {"generator": made})
    assert (found.revision, found.condition.adapter.revision) == ("1" * 40, "2" * 40)
    changed = pinned(generator.model_copy(update={"condition": None}), {"generator": made})
    assert (changed.revision, changed.condition) == ("1" * 40, None)


@pytest.mark.parametrize(("family", "adapted"), [("unclip", True), ("sd-epsilon", False)])
def test_a_condition_that_the_pipeline_does_not_take(make_pool, tmp_path, family, adapted):
    folder, adapter = save(family, tmp_path / family), save_adapter("sd-epsilon", tmp_path / "adapter")
    files = {"model": str(adapter), "weights": "adapter.safetensors", "encoder": "image_encoder"}
    with pytest.raises(ModelError, match="does not fit the pipeline") as caught:
        make_pool(generator={"model": str(folder), "condition": {"adapter": files if adapted else None}})
    assert caught.value.where == "generator.condition"


def test_precision_follows_from_the_reserved_device(make_pool):
    model = make_pool().spec.generator.model
    here = make_pool().spec.devices
    assert (here.generator, here.dtype, here.scorer) == ("cpu", "float32", "cpu")
    there = make_pool(pool={"sampling": {"num_gpus": 0.5}, "scoring": {"num_gpus": 0.1}}).spec.devices
    assert (there.generator, there.dtype, there.scorer) == ("cuda", "bfloat16", "cuda")
    with pytest.raises(ConfigError, match=r"pool\.sampling\.num_gpus"):
        make_pool(generator={"model": model, "device": "cuda"})


def test_models_that_are_not_there(make_pool, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model_index.json").write_text('{"_class')
    for model, message in [
        (tmp_path / "none", "does not exist"),
        (tmp_path / "empty", "not a diffusers pipeline"),
        (tmp_path / "torn", "not a diffusers pipeline"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            make_pool(generator={"model": str(model)})
        assert caught.value.where == "generator.model"
    for scorer, message in [
        ({"model": str(tmp_path / "none")}, "does not exist"),
        ({"model": str(tmp_path / "empty")}, "open_clip_config.json"),
        ({"model": "ViT-B-32"}, "without weights"),
    ]:
        with pytest.raises(ModelError, match=message) as caught:
            make_pool(scorer=scorer)
        assert "scorer." in caught.value.where


def test_the_generation_is_plain_json(make_pool):
    generation = make_pool().generation
    assert json.loads(json.dumps(generation)) == generation
    assert np.shape(generation["prompts"]) == (2, 2, 1)
    assert np.shape(generation["plain"]) == (2, 2)
