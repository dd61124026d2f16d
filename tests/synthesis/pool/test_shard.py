"""Shards as plain functions: what is drawn, drawn again, scored and written."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from counterpoise.generators.text_to_image import Samples, to_samples
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import SYNTHETIC, LabelSpace
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard, seed

RECIPE = making.ShardSpec(
    "d",
    LabelSpace(("star",), ("red", "blue")),
    [[["red star"], ["blue star", "small blue star", "big blue star"]]],
    [["red star", "blue star"]],
    "blur",
    4,
    3,
)
SHARD = Shard(0, 1, 2)  # indices 8 to 11
EXPECTED = ["big blue star", "blue star", "small blue star", "big blue star"]  # 8 % 3, 9 % 3, …


class Sampler:
    """Noise of its seed; uniform for the seeds named; remembers its batches."""

    def __init__(self, uniform=()):
        self.uniform, self.batches, self.prompts = set(uniform), [], []

    def __call__(self, prompts, negative, seeds):
        self.prompts.append(list(prompts))
        assert negative == "blur"
        self.batches.append(list(seeds))
        images = [np.random.default_rng(one).random((4, 4, 3)) * (one not in self.uniform) for one in seeds]
        return to_samples(np.stack(images))


def address(index, attempt):
    return seed("d", 0, 1, index, attempt)


def test_one_batch_when_all_is_well():
    sampler = Sampler()
    draft = making.draw(sampler, RECIPE, SHARD)
    assert sampler.batches == [[address(index, 0) for index in range(8, 12)]] == [draft.seeds]
    table = making.to_table(draft, RECIPE, SHARD)
    assert table.schema.equals(SYNTHETIC)
    assert LabelSpace.from_metadata(table.schema.metadata) == RECIPE.names
    assert table["index"].to_pylist() == [8, 9, 10, 11]
    assert table["id"].to_pylist()[0] == "d-0-1-8"
    assert set(table["group"].to_pylist()) == {1}
    assert table["attempt"].to_pylist() == [0] * 4
    assert [table["prompt"].to_pylist()] == sampler.prompts == [EXPECTED]
    assert table["defect"].null_count == 4
    np.testing.assert_array_equal(decode_image(table["image"][3].as_py()), draft.pixels[3])


def test_a_defect_is_drawn_again_with_another_seed():
    sampler = Sampler(uniform=[address(9, 0), address(11, 0), address(11, 1)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE, SHARD)
    assert sampler.batches[1:] == [[address(9, 1), address(11, 1)], [address(11, 2)]]
    assert sampler.prompts[1:] == [["blue star", "big blue star"], ["big blue star"]]
    assert table["prompt"].to_pylist() == EXPECTED
    assert table["attempt"].to_pylist() == [0, 1, 0, 2]
    assert table["seed"].to_pylist() == [address(8, 0), address(9, 1), address(10, 0), address(11, 2)]
    assert table["defect"].null_count == 4


def test_after_the_last_attempt_it_is_quarantined():
    sampler = Sampler(uniform=[address(9, attempt) for attempt in range(3)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE, SHARD)
    assert table["defect"].to_pylist() == [None, "one colour all over", None, None]
    assert table["attempt"].to_pylist() == [0, 2, 0, 0]
    assert [image is None for image in table["image"].to_pylist()] == [False, True, False, False]
    assert len(sampler.batches) == 3


def test_defects_of_pixels():
    images = np.random.default_rng(0).random((5, 8, 8, 3))
    images[1, 0, 0, 0] = np.nan
    images[2] = np.inf
    images[3] = [0.2, 0.9, 0.5]  # uniform, though its channels differ
    samples = to_samples(images, unsafe=[False, False, False, False, True])
    assert samples.defects == [
        None,
        "pixels are not finite",
        "pixels are not finite",
        "one colour all over",
        "held back by the safety checker",
    ]
    np.testing.assert_array_equal(samples.pixels[0], np.rint(images[0] * 255))


def test_the_file_is_the_same_every_time():
    files = [
        making.to_parquet(making.to_table(making.draw(Sampler(), RECIPE, SHARD), RECIPE, SHARD, threads))
        for threads in (1, 3)
    ]
    assert files[0] == files[1]


def test_the_way_from_worker_to_worker_changes_nothing():
    table = making.to_table(making.draw(Sampler(), RECIPE, SHARD), RECIPE, SHARD)
    assert making.from_ipc(making.to_ipc(table)).equals(table, check_metadata=True)


def test_without_groups_the_group_is_unknown():
    recipe = making.ShardSpec("d", LabelSpace(("star",)), [[["star"]]], [["star"]], "", 2, 1)
    samples = Samples(np.random.default_rng(0).integers(0, 255, (2, 4, 4, 3), np.uint8), [None, None])
    table = making.to_table(making.draw(lambda *_: samples, recipe, Shard(0, 0, 0)), recipe, Shard(0, 0, 0))
    assert table["group"].to_pylist() == [-1, -1]


def test_scores_belong_to_the_cell(tiny_models):
    from counterpoise.config import Scorer
    from counterpoise.scoring.clip import Clip

    clip = Clip(Scorer(model=str(tiny_models / "clip")), "cpu")
    sampler = Sampler(uniform=[address(9, attempt) for attempt in range(3)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE, SHARD)
    texts = clip.embed_texts(RECIPE.all_plain)
    scored = making.score(clip, texts, RECIPE, SHARD, table)
    assert scored.schema.equals(table.schema, check_metadata=True)
    assert table["clip_embedding"].null_count == 4
    images = clip.embed_images([decode_image(table["image"][row].as_py()) for row in (0, 2, 3)])
    for row, image in zip((0, 2, 3), images, strict=True):
        own, rival = float(texts[1] @ image), float(texts[0] @ image)
        asked = float(clip.embed_texts([EXPECTED[row]])[0] @ image)  # with its own prompt, not with the plain one
        assert scored["clip_similarity"][row].as_py() == pytest.approx(asked, abs=1e-6)
        assert scored["clip_margin"][row].as_py() == pytest.approx(own - rival, abs=1e-6)
        own_cell = own >= rival
        seen = (scored["clip_label"][row].as_py(), scored["clip_group"][row].as_py())
        assert seen == (0, 1 if own_cell else 0)
        np.testing.assert_array_equal(scored["clip_embedding"][row].as_py(), image.astype(np.float16))
    for name in ("similarity", "margin", "label", "group", "embedding"):
        assert scored[f"clip_{name}"][1].as_py() is None
    assert pq.read_table(io.BytesIO(making.to_parquet(scored))).equals(scored)


def test_scores_of_a_shard_without_a_usable_image():
    table = making.to_table(
        making.draw(Sampler(uniform=[address(i, a) for i in range(8, 12) for a in range(3)]), RECIPE, SHARD),
        RECIPE,
        SHARD,
    )
    assert making.score(None, np.eye(2, dtype=np.float32), RECIPE, SHARD, table).equals(table)


def test_zero_shot_without_groups():
    recipe = making.ShardSpec(
        "d", LabelSpace(("star", "disc")), [[["star"]], [["disc"]]], [["star"], ["disc"]], "", 3, 1
    )
    samples = Samples(np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), np.uint8), [None] * 3)
    table = making.to_table(making.draw(lambda *_: samples, recipe, Shard(1, 0, 0)), recipe, Shard(1, 0, 0))

    class Clip:
        def embed_images(self, images):
            return np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], np.float32)

        def embed_text(self, text):
            return np.array([0.0, 1.0], np.float32)

    scored = making.score(Clip(), np.eye(2, dtype=np.float32), recipe, Shard(1, 0, 0), table)
    assert scored["clip_label"].to_pylist() == [1, 0, 1]
    assert scored["clip_group"].to_pylist() == [-1, -1, -1]
    np.testing.assert_allclose(scored["clip_margin"], [0.2, -0.2, 1.0], atol=1e-6)
