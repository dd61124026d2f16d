"""The shipped weights load offline in the libraries they were made for, and do what their cards say."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import StableDiffusionPipeline

from counterpoise.testbed import MODELS
from counterpoise.testbed.clip import zero_shot
from counterpoise.testbed.oracle import judge, load_oracle
from counterpoise.testbed.pairs import CLASSES, Fashion, Pair, Shapes
from counterpoise.testbed.publish import load_pipeline, sample

LIMIT_MB = 12.0
PAIRS: dict[str, Pair] = {"shapes": Shapes(), "fashion": Fashion.__new__(Fashion)}  # fashion: factors only, no files
FLOORS = {"shapes": {"shape": 0.8, "color": 0.9, "background": 0.9}, "fashion": {"class": 0.7, "tint": 0.9}}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=sorted(PAIRS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipe(name: str) -> StableDiffusionPipeline:
    return load_pipeline(MODELS / name)


def test_a_pair_is_small_and_has_its_card(name: str):
    files = [path for path in (MODELS / name).rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    assert sum(size for path, size in sizes.items() if "unclip" not in path.parts) < LIMIT_MB * 1e6
    assert sum(size for path, size in sizes.items() if "unclip" in path.parts) < 8e6
    card = json.loads((MODELS / name / "card.json").read_text())
    assert card["pair"] == name
    assert card["sampler"]["num_inference_steps"] <= 20
    assert f"{card['sampler']['guidance_scale']}" in (MODELS / name / "README.md").read_text()


def test_the_clip_loads_and_reads_what_the_generator_reads(name: str, pipe: StableDiffusionPipeline):
    place = f"local-dir:{MODELS / name / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(place)
    texts = [PAIRS[name].fill(PAIRS[name].full[0], cell) for cell in PAIRS[name].cells()[:8]] + ["", "something else"]
    ids = open_clip.get_tokenizer(place)(texts)
    assert torch.equal(ids, pipe.tokenizer(texts, padding="max_length", return_tensors="pt").input_ids)
    with torch.no_grad():
        pooled = pipe.text_encoder(ids).pooler_output @ model.text_projection
        assert torch.allclose(pooled, model.encode_text(ids), atol=1e-5)
    assert preprocess.transforms[0].size == 32


def test_samples_show_what_was_asked_for(name: str, pipe: StableDiffusionPipeline):
    pair, sampler = PAIRS[name], json.loads((MODELS / name / "card.json").read_text())["sampler"]
    labels = pair.labels(64, np.random.default_rng(0))
    prompts = [pair.fill(pair.full[0], label) for label in labels]
    images = sample(pipe, prompts, 0, sampler["num_inference_steps"], sampler["guidance_scale"])
    assert images.shape == (64, 32, 32, 3)
    oracle = load_oracle(MODELS / name / "oracle.safetensors", tuple(map(len, pair.factors.values())))
    right = dict(zip(pair.factors, (judge(oracle, images) == labels).mean(0), strict=True))
    assert all(right[factor] >= floor for factor, floor in FLOORS[name].items()), right


def test_the_shapes_clip_knows_the_world():
    pair = PAIRS["shapes"]
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{MODELS / 'shapes' / 'clip'}")
    labels = pair.labels(512, np.random.default_rng(1))
    tokenizer = load_pipeline(MODELS / "shapes").tokenizer
    scores = zero_shot(model, tokenizer, pair, pair.held_out(labels, seed=1), labels)
    assert min(scores.values()) >= 0.93, scores


def test_fashion_images_come_from_disjoint_halves(tmp_path: Path):
    """The generator's half is the even rows; the test writes four files of its own and looks."""
    import gzip
    import struct

    grey = np.repeat(np.arange(40, dtype=np.uint8)[:, None, None], 28, 1).repeat(28, 2)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", grey), ("labels-idx1", (np.arange(40) // 2 % 10).astype(np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    pair = Fashion(tmp_path)
    labels = np.array([[c, list(pair.factors["tint"]).index("grey")] for c in range(len(CLASSES))] * 2)
    levels = pair.images(labels, seed=0)[:, 16, 16, 0]
    assert set(levels) <= set(range(0, 40, 2))
    assert len(set(levels)) == 20
