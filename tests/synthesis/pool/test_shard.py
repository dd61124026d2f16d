"""Shards as plain functions: what is drawn, drawn again, scored and written."""

import hashlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from counterpoise.generators.text_to_image import Samples, to_samples
from counterpoise.storage.codec import decode_image
from counterpoise.storage.records import DamagedError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard, seed
from counterpoise.synthesis.pool.shard_file import BULKY, INDEX, content_hash, from_file, index_row, to_file
from counterpoise.synthesis.pool.shard_file import SHARD as COLUMNS
from counterpoise.synthesis.pool.shard_spec import ShardSpec

RECIPE = ShardSpec(
    "d",
    "n",
    LabelSpace(("star",), ("red", "blue")),
    "png",
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
    return seed("n", 0, 1, index, attempt)


def test_one_batch_when_all_is_well():
    sampler = Sampler()
    draft = making.draw(sampler, RECIPE, SHARD)
    assert sampler.batches == [[address(index, 0) for index in range(8, 12)]] == [draft.seeds]
    table = making.to_table(draft, RECIPE)
    assert table.schema.equals(COLUMNS)
    assert table["seed"].to_pylist() == draft.seeds
    assert table["attempt"].to_pylist() == [0] * 4
    assert sampler.prompts == [EXPECTED] == [RECIPE.prompts_of(SHARD)]
    assert table["defect"].null_count == 4
    np.testing.assert_array_equal(decode_image(table["image"][3].as_py()), draft.pixels[3])


def test_a_defect_is_drawn_again_with_another_seed():
    sampler = Sampler(uniform=[address(9, 0), address(11, 0), address(11, 1)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE)
    assert sampler.batches[1:] == [[address(9, 1), address(11, 1)], [address(11, 2)]]
    assert sampler.prompts[1:] == [["blue star", "big blue star"], ["big blue star"]]
    assert table["attempt"].to_pylist() == [0, 1, 0, 2]
    assert table["seed"].to_pylist() == [address(8, 0), address(9, 1), address(10, 0), address(11, 2)]
    assert table["defect"].null_count == 4


def test_after_the_last_attempt_it_is_quarantined():
    sampler = Sampler(uniform=[address(9, attempt) for attempt in range(3)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE)
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
    tables = [making.to_table(making.draw(Sampler(), RECIPE, SHARD), RECIPE, threads) for threads in (1, 3)]
    files = [to_file(table, "d", SHARD) for table in tables]
    assert files[0] == files[1]


def test_the_way_from_worker_to_worker_changes_nothing():
    table = making.to_table(making.draw(Sampler(), RECIPE, SHARD), RECIPE)
    assert making.from_ipc(making.to_ipc(table)).equals(table, check_metadata=True)


@pytest.fixture
def scored(tiny_models):
    """A shard with scores, whose second image is quarantined; and its scorer."""
    from counterpoise.config import Scorer
    from counterpoise.scoring.clip import Clip

    clip = Clip(Scorer(model=str(tiny_models / "clip")), "cpu")
    sampler = Sampler(uniform=[address(9, attempt) for attempt in range(3)])
    table = making.to_table(making.draw(sampler, RECIPE, SHARD), RECIPE)
    return clip, table, making.score(clip, clip.embed_texts(RECIPE.all_plain), RECIPE, SHARD, table)


def test_scores_belong_to_the_cell(scored):
    clip, table, scored = scored
    texts = clip.embed_texts(RECIPE.all_plain)
    assert scored.schema.equals(table.schema, check_metadata=True)
    assert table["embedding"].null_count == 4
    images = clip.embed_images([decode_image(table["image"][row].as_py()) for row in (0, 2, 3)])
    for row, image in zip((0, 2, 3), images, strict=True):
        own, rival = float(texts[1] @ image), float(texts[0] @ image)
        asked = float(clip.embed_texts([EXPECTED[row]])[0] @ image)  # with its own prompt, not with the plain one
        assert scored["clip_similarity"][row].as_py() == pytest.approx(asked, abs=1e-6)
        assert scored["clip_margin"][row].as_py() == pytest.approx(own - rival, abs=1e-6)
        own_cell = own >= rival
        seen = (scored["clip_label"][row].as_py(), scored["clip_group"][row].as_py())
        assert seen == (0, 1 if own_cell else 0)
        np.testing.assert_array_equal(np.frombuffer(scored["embedding"][row].as_py(), "<f2"), image.astype(np.float16))
    for name in ("clip_similarity", "clip_margin", "clip_label", "clip_group", "embedding"):
        assert scored[name][1].as_py() is None


def test_a_file_holds_the_rows_and_any_reader_opens_it(scored):
    *_, table = scored
    data = to_file(table, "d", SHARD)
    assert from_file(data, "d", SHARD, "here").equals(table)
    plain = pq.read_table(io.BytesIO(data))
    assert plain.replace_schema_metadata(None).cast(COLUMNS).equals(table)


@pytest.mark.parametrize(
    ("digest", "shard"), [("e", SHARD), ("d", Shard(1, 1, 2)), ("d", Shard(0, 0, 2)), ("d", Shard(0, 1, 3))]
)
def test_the_file_of_another_shard_is_not_taken(scored, digest, shard):
    data = to_file(scored[-1], "d", SHARD)
    with pytest.raises(DamagedError, match="the file of another shard") as caught:
        from_file(data, digest, shard, "this file")
    assert caught.value.where == "this file"


@pytest.mark.parametrize("about", [None, "[]", "{}", '{"sha256": ', "of_content", "no_list"])
def test_a_file_without_a_sound_address_is_not_taken(scored, about):
    """What stands in the metadata may be anything: it is an error of the file, never another one."""
    table = from_file(to_file(scored[-1], "d", SHARD), "d", SHARD, "here")
    values = {"of_content": {}, "no_list": {"pool": "d", "shard": 3}}
    if about in values:
        about = json.dumps(values[about] | {"sha256": content_hash(table)})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(about and {"counterpoise": about}), buffer)
    with pytest.raises(DamagedError):
        from_file(buffer.getvalue(), "d", SHARD, "here")


def test_an_index_row_says_where_everything_is(scored):
    *_, table = scored
    data = to_file(table, "d", SHARD)
    row = index_row(data, table, SHARD, "cpu", {"sample": 2.0, "encode": 0.5, "commit": 9.0})
    assert row.schema.equals(INDEX)
    (values,) = row.to_pylist()
    assert [values[name] for name in ("label", "group", "number")] == [0, 1, 2]
    assert (values["bytes"], values["sha256"]) == (len(data), hashlib.sha256(data).digest())
    assert [values[name] for name in ("device", "sample", "encode", "score")] == ["cpu", 2.0, 0.5, None]
    for column in BULKY:
        for place, value in enumerate(table[column].to_pylist()):
            start, size, sha = (values[f"{column}_{part}"][place] for part in ("offset", "length", "sha256"))
            if value is None:
                assert (start, size, sha) == (-1, -1, None)
            else:
                assert data[start : start + size] == value
                assert sha == hashlib.sha256(value).digest()[:16]
    for name in set(COLUMNS.names) - set(BULKY):
        assert values[name] == table[name].to_pylist()


def test_without_costs_an_index_row_knows_none(scored):
    table = scored[-1]
    (values,) = index_row(to_file(table, "d", SHARD), table, SHARD).to_pylist()
    assert [values[name] for name in ("device", "sample", "encode", "score")] == [None] * 4


def test_scores_of_a_shard_without_a_usable_image():
    table = making.to_table(
        making.draw(Sampler(uniform=[address(i, a) for i in range(8, 12) for a in range(3)]), RECIPE, SHARD),
        RECIPE,
    )
    assert making.score(None, np.eye(2, dtype=np.float32), RECIPE, SHARD, table).equals(table)


def test_zero_shot_without_groups():
    recipe = ShardSpec(
        "d", "n", LabelSpace(("star", "disc")), "png", [[["star"]], [["disc"]]], [["star"], ["disc"]], "", 3, 1
    )
    samples = Samples(np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), np.uint8), [None] * 3)
    table = making.to_table(making.draw(lambda *_: samples, recipe, Shard(1, 0, 0)), recipe)

    class Clip:
        def embed_images(self, images):
            return np.array([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], np.float32)

        def embed_text(self, text):
            return np.array([0.0, 1.0], np.float32)

    scored = making.score(Clip(), np.eye(2, dtype=np.float32), recipe, Shard(1, 0, 0), table)
    assert scored["clip_label"].to_pylist() == [1, 0, 1]
    assert scored["clip_group"].to_pylist() == [-1, -1, -1]
    np.testing.assert_allclose(scored["clip_margin"], [0.2, -0.2, 1.0], atol=1e-6)
