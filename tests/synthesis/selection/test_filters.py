"""Filters on a pool without models: what each rejects, why, and that a verdict follows from the address alone."""

import sys
import types

import numpy as np
import pytest

from counterpoise.config import Selection
from counterpoise.errors import ConfigError
from counterpoise.execution import graph
from counterpoise.storage.codec import encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.selection import filters, select
from counterpoise.synthesis.selection.selected_images import summary as summarize
from counterpoise.synthesis.selection.verdicts import Verdicts
from filler import Filler, ask
from recording_store import RecordingStore

CELL, OTHER = (0, 1), (1, 0)
THRESHOLD = 0.97
MODULE = '''
def dull(candidates, settings):
    """Rejects images of a low similarity; settings: {least: …}."""
    return [None if row["clip_similarity"] > settings["least"] else "dull" for row in candidates.rows.to_pylist()]

def forgetful(candidates, settings):
    return [None] * (len(candidates) - 1)

def boolean(candidates, settings):
    return [True] * len(candidates)

number = 3
'''


def vector(label, group, index):
    """A point on a circle; those within 14 degrees of each other are near-duplicates."""
    angle = np.random.default_rng([label, group, index]).uniform(0, 2 * np.pi)
    return np.array([np.cos(angle), np.sin(angle), 0.0])


def is_bad(label, group, index):
    return index % 11 == 3


def scores(label, group, index):
    rng = np.random.default_rng([label, group, index])
    return {
        "clip_similarity": float(rng.uniform(0, 1)),
        "clip_label": int(label if rng.random() < 0.8 else 1 - label),
        "clip_group": int(group if rng.random() < 0.7 else 1 - group),
        "embedding": vector(label, group, index).astype("<f2").tobytes(),
    }


@pytest.fixture
def filled(make_pool):
    """Makes the verdicts of a selection on a pool with the first shards of two cells."""

    def make(shards=6, selection=None, order=1, **changes):
        pool = make_pool(**changes)
        for number in range(shards)[::order]:
            for label, group in (CELL, OTHER):
                Filler(defect=is_bad, scores=scores).put(pool, Shard(label, group, number))
        return Verdicts(pool, Selection.model_validate(selection or {}))

    return make


def of(verdicts, *shards):
    """Each image's rejection, or None."""
    ranks = verdicts.pool.index.ranks(shards)
    accepted, rejects = verdicts.accepted(ranks).ravel().tolist(), verdicts.rejects(ranks)
    found = zip(*(rejects.index[name].to_pylist() for name in ("filter", "reason")), strict=True)
    verdicts_of_all = [None if is_accepted else filters.Reject(*next(found)) for is_accepted in accepted]
    assert next(found, None) is None
    return verdicts_of_all


def reasons(verdicts, cell, shards):
    return of(verdicts, *(Shard(*cell, number) for number in range(shards)))


def again(verdicts):
    """The verdicts of the same filters on what is in the store now."""
    pool = verdicts.pool
    selection = Selection.model_validate({one.name: one.settings for one in verdicts.filters})
    return Verdicts(Pool(pool.spec, pool.names, pool.store), selection)


def usable(cell, count):
    return [index for index in range(count) if not is_bad(*cell, index)]


# -- which are on ------------------------------------------------------------------------------------------------------


def test_every_filter_has_a_key_and_is_off_by_default(filled):
    assert set(filters.COLUMN_FILTERS) | set(filters.IMAGE_FILTERS) == set(Selection.model_fields) - {
        "custom",
        "max_draw",
    }
    assert filters.active_filters(Selection()) == []
    verdicts = reasons(filled(), CELL, 6)
    assert [index for index, verdict in enumerate(verdicts) if verdict is None] == usable(CELL, 48)
    assert {verdict for verdict in verdicts if verdict} == {("quarantined", "quarantined: one colour all over")}


@pytest.mark.parametrize(
    "selection", [{"clip_similarity": 0.1}, {"clip_margin": 0}, {"zero_shot": "label"}, {"near_duplicate": 0.9}]
)
def test_clips_filters_need_a_scorer(make_pool, selection):
    with pytest.raises(ValueError, match=f"`selection.{next(iter(selection))}` needs a `scorer`"):
        make_pool(selection=selection, scorer=None)
    make_pool(selection={"grey": 5.7}, scorer=None)


# -- what each rejects -------------------------------------------------------------------------------------------------


def test_similarity(filled):
    verdicts = reasons(filled(selection={"clip_similarity": 0.4}), CELL, 6)
    for index in usable(CELL, 48):
        value = np.float32(scores(*CELL, index)["clip_similarity"])
        expected = None if value >= 0.4 else ("clip_similarity", f"clip_similarity {value:.3f} < 0.4")
        assert verdicts[index] == expected


@pytest.mark.parametrize("what", ["label", "cell"])
def test_zero_shot(filled, names, what):
    verdicts = reasons(filled(selection={"zero_shot": what}), CELL, 6)
    seen = {index: (scores(*CELL, index)["clip_label"], scores(*CELL, index)["clip_group"]) for index in range(48)}
    for index in usable(CELL, 48):
        right = seen[index][0] == CELL[0] if what == "label" else seen[index] == CELL
        assert (verdicts[index] is None) == right
        if not right:
            assert verdicts[index] == ("zero_shot", f"zero_shot: CLIP sees {names.cell(*seen[index])}")


def test_grey(make_pool):
    """FFR's rule: red and the mean of the channels are the same."""
    pool = make_pool()
    red = np.random.default_rng(0).integers(0, 100, (8, 8, 3), np.uint8) + np.array([30, 0, 0], np.uint8)
    grey = np.repeat(red[..., :1], 3, axis=-1)
    Filler(scores=lambda *address: {"image": encode_image(grey if address[2] % 2 else red)}).put(pool, Shard(0, 0, 0))
    view = pool.view(np.arange(2))
    lead = abs(red.mean() - red[..., 0].mean())
    assert 15 < lead < 25
    assert filters.grey(filters.Candidates(view), 5.7) == [None, "grey: red within 0.00 < 5.7 levels of the mean"]
    assert filters.grey(filters.Candidates(view), lead + 0.1)[0] is not None
    verdicts = of(Verdicts(pool, Selection(grey=5.7)), Shard(0, 0, 0))
    assert [verdict and verdict.filter for verdict in verdicts] == [None, "grey"] * 4


# -- near-duplicates ---------------------------------------------------------------------------------------------------


def brute_force(cell, count):
    """The first earlier image that is too close, for each image; by a loop over all pairs."""
    vectors = {index: vector(*cell, index).astype(np.float16).astype(np.float64) for index in usable(cell, count)}
    vectors = {index: values / np.linalg.norm(values) for index, values in vectors.items()}
    return {i: next((j for j in vectors if j < i and vectors[i] @ vectors[j] >= THRESHOLD), None) for i in vectors}


def test_near_duplicates_are_those_of_brute_force(filled):
    judged = filled(selection={"near_duplicate": THRESHOLD})
    for cell in (CELL, OTHER):
        verdicts, expected = reasons(judged, cell, 6), brute_force(cell, 48)
        assert 10 < sum(first is not None for first in expected.values()) < 40
        assert any(first is not None and first // 8 < index // 8 for index, first in expected.items())
        assert any(first is not None and first // 8 == index // 8 for index, first in expected.items())
        # an image may be too close to one that was itself rejected: it is rejected too
        assert any(expected.get(first) is not None for first in expected.values())
        for index, first in expected.items():
            if first is None:
                assert verdicts[index] is None
            else:
                assert verdicts[index].filter == "near_duplicate"
                assert f"near-duplicate of {judged.pool.digest}-{cell[0]}-{cell[1]}-{first}, cosine 0.9" in (
                    verdicts[index].reason.replace("cosine 1.000", "cosine 0.9")
                )


def test_a_verdict_does_not_depend_on_later_images_or_on_who_asks_first(filled, tmp_path):
    selection = {"near_duplicate": THRESHOLD, "clip_similarity": 0.2}
    few, many = filled(3, selection), filled(6, selection, order=-1, store=tmp_path / "many")
    backwards = [of(many, Shard(*cell, number)) for number in (5, 2, 0) for cell in (CELL, OTHER)]
    assert reasons(few, CELL, 3) == reasons(many, CELL, 3)
    assert backwards[4] == of(few, Shard(*CELL, 0))
    assert backwards[3] == of(few, Shard(*OTHER, 2))


def test_a_larger_plan_contains_the_smaller(make_pool, fill):
    filler = fill(Filler(scores=lambda label, group, index: scores(label, group, index // 2)))
    selection = {"near_duplicate": 0.99, "max_draw": 20}
    small = select.select_images(make_pool(), ask({"p": np.array([[0, 5], [3, 0]])}, **selection))
    large = select.select_images(make_pool(), ask({"p": np.array([[0, 12], [6, 0]])}, **selection))
    assert len(filler.rounds) > 2
    for cell, count in ((CELL, 5), (OTHER, 3)):
        chosen = [
            r.views["m", "p"].where(label=cell[0], group=cell[1]).column("index").tolist() for r in (small, large)
        ]
        assert chosen[0] == chosen[1][:count]
        assert all(index % 2 == 0 for index in chosen[1])  # every second image is the one before once more
    assert large.short == []
    assert large.rejected["near_duplicate"] > 18


def test_a_shard_without_usable_images_is_compared_with_nothing(make_pool):
    pool = make_pool()
    for number in range(3):
        Filler(defect=lambda label, group, index: 8 <= index < 16, scores=lambda *_: scores(0, 0, 0)).put(
            pool, Shard(0, 0, number)
        )
    verdicts = Verdicts(pool, Selection(near_duplicate=0.5))
    kinds = [[verdict and verdict.filter for verdict in of(verdicts, Shard(0, 0, number))] for number in range(3)]
    assert kinds == [[None] + ["near_duplicate"] * 7, ["quarantined"] * 8, ["near_duplicate"] * 8]


def test_what_lies_behind_a_hole_is_not_held(filled):
    verdicts = filled(2)
    held = verdicts.available_counts()
    Filler().put(verdicts.pool, Shard(*CELL, 3))
    assert Shard(*CELL, 3) in again(verdicts).pool.index
    assert again(verdicts).available_counts().tolist() == held.tolist()
    Filler().put(verdicts.pool, Shard(*CELL, 2))
    assert again(verdicts).available_counts()[CELL] == held[CELL] + 16


# -- which shards are judged -------------------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch):
    """The shards that an image filter has seen, in order; it is a custom filter of the name ``watched:keep``."""
    seen = []

    def keep(candidates, settings):
        seen.append({(row["label"], row["group"], row["index"] // 8) for row in candidates.rows.to_pylist()})
        return [None if row["index"] % 2 else "even" for row in candidates.rows.to_pylist()]

    monkeypatch.setitem(sys.modules, "watched", types.SimpleNamespace(keep=keep))
    return seen


COLUMNS = {"clip_similarity": 0.2, "zero_shot": "label"}


def test_column_filters_judge_all_rows_at_once_without_reading_a_shard(filled):
    pool = filled().pool
    pool.index.gather()
    store = RecordingStore(pool.store.root)
    verdicts = Verdicts(Pool(pool.spec, pool.names, store), Selection.model_validate(COLUMNS))
    assert verdicts.step is None
    for cell in (CELL, OTHER):
        verdicts.accepted(verdicts.pool.index.prefix(*cell))
        verdicts.rejects(verdicts.pool.index.prefix(*cell))
    verdicts.available_counts()
    assert store.of("read_range", "open") == []
    assert store.of("read") == segments.keys(store.list(""))  # one


def test_column_filters_judge_images_of_any_shard_on_its_own(filled):
    """Also behind a hole, and one of which nobody asked for the earlier ones."""
    every = filled(selection=COLUMNS)
    expected = reasons(every, CELL, 6)
    for number in (5, 1, 3):
        alone = Verdicts(Pool(every.pool.spec, every.pool.names, every.pool.store), Selection.model_validate(COLUMNS))
        assert of(alone, Shard(*CELL, number)) == expected[8 * number : 8 * number + 8]


def test_image_filters_judge_no_more_shards_than_needed(make_pool, judged):
    pool = make_pool()
    for number in range(6):
        for cell in (CELL, OTHER):
            Filler().put(pool, Shard(*cell, number))
    wanted = {"p": np.array([[0, 9], [4, 0]])}
    realized = select.select_images(pool, ask(wanted, custom={"watched:keep": None}, max_draw=3))
    assert realized.views["m", "p"].column("index").tolist() == [*range(1, 18, 2), 1, 3, 5, 7]
    assert [shard for shards in judged for shard in sorted(shards)] == [
        *((*CELL, number) for number in range(3)),
        (*OTHER, 0),
    ]  # each once
    assert (realized.sampled, realized.shards) == (0, 4)


def test_image_filters_judge_a_shard_once_also_over_several_rounds(make_pool, fill, judged):
    filler = fill(Filler())
    wanted = {"p": np.array([[0, 40], [30, 0]]), "q": np.array([[10, 40], [30, 0]])}
    realized = select.select_images(make_pool(), ask(wanted, custom={"watched:keep": None}, max_draw=4))
    assert len(filler.rounds) > 1
    assert realized.short == []
    shards = [shard for shards in judged for shard in shards]
    assert len(set(shards)) == len(shards)


def test_image_filters_judge_nothing_that_column_filters_decide(filled, judged):
    verdicts = filled(selection={"clip_similarity": 1.5, "custom": {"watched:keep": None}})
    kinds = {verdict.filter for verdict in reasons(verdicts, CELL, 6)}
    assert kinds == {"quarantined", "clip_similarity"}
    assert judged == []


@pytest.mark.parametrize("seed", range(4))
def test_verdicts_are_the_same_in_whatever_order_they_are_asked_for(filled, judged, seed, tmp_path):
    """Column and image filters together; a shard is judged after the earlier ones of its cell."""
    selection = COLUMNS | {"near_duplicate": THRESHOLD, "custom": {"watched:keep": None}}
    pool = filled().pool
    expected = [reasons(Verdicts(pool, Selection.model_validate(selection)), cell, 6) for cell in (CELL, OTHER)]
    assert {verdict and verdict.filter for verdict in expected[0]} == {
        None, "quarantined", "clip_similarity", "zero_shot", "near_duplicate", "watched:keep",
    }  # fmt: skip
    rng, verdicts = np.random.default_rng(seed), Verdicts(pool, Selection.model_validate(selection))
    asked = [(cell, number) for cell in (0, 1) for number in range(6)] * 2
    for place in rng.permutation(len(asked)):
        cell, number = asked[place]
        found = of(verdicts, Shard(*(CELL, OTHER)[cell], number))
        assert found == expected[cell][8 * number : 8 * number + 8]


# -- several at once ---------------------------------------------------------------------------------------------------


def test_the_first_that_rejects_gives_the_reason_and_counts(make_pool, fill):
    fill(Filler(defect=is_bad, scores=scores))
    selection = {"clip_similarity": 0.3, "zero_shot": "cell", "near_duplicate": THRESHOLD, "max_draw": 3}
    requests = ask({"p": np.array([[0, 16], [0, 0]])}, max_quarantined=0.2, **selection)
    realized = select.select_images(make_pool(), requests)
    said, close = {"clip_similarity": 0, "zero_shot": 0, "near_duplicate": 0}, brute_force(CELL, 48)
    for index in usable(CELL, 48):
        found = scores(*CELL, index)
        if found["clip_similarity"] < 0.3:
            said["clip_similarity"] += 1
        elif (found["clip_label"], found["clip_group"]) != CELL:
            said["zero_shot"] += 1
        elif close[index] is not None:
            said["near_duplicate"] += 1
    assert realized.rejected == said
    assert list(realized.rejected) == list(said)
    assert min(said.values()) > 0
    assert realized.quarantined == 5
    assert len(realized.views["m", "p"]) == 48 - 5 - sum(said.values())


def test_rejects_can_be_looked_at(filled):
    verdicts = filled(selection={"clip_similarity": 0.4})
    rejects = verdicts.rejects(verdicts.pool.index.prefix(*CELL))
    low = rejects.where(filter="clip_similarity")
    assert low.column("index").tolist() == [
        index for index in usable(CELL, 48) if scores(*CELL, index)["clip_similarity"] < 0.4
    ]
    assert all(reason.endswith("< 0.4") for reason in low.index["reason"].to_pylist())
    assert all(data for _, data in low.images())
    quarantined = rejects.where(filter="quarantined")
    assert quarantined.column("index").tolist() == [3, 14, 25, 36, 47]
    assert dict(quarantined.images()) == dict.fromkeys(range(5))
    assert set(quarantined.index["reason"].to_pylist()) == {"quarantined: one colour all over"}
    assert len(verdicts.rejects(np.array([], np.int64)).where(filter="clip_similarity")) == 0


def test_purity_is_the_share_in_the_own_cell(filled, make_pool, fill, tmp_path):
    pool = filled().pool
    shards = [Shard(*cell, number) for cell in (CELL, OTHER) for number in range(6)]
    scored, pure = pool.purity(pool.index.ranks(shards))
    for cell in (CELL, OTHER):
        seen = [scores(*cell, index) for index in usable(cell, 48)]
        assert scored[cell] == len(seen) == 43
        assert pure[cell] == sum((one["clip_label"], one["clip_group"]) == cell for one in seen)
    assert scored[0, 0] == scored[1, 1] == 0
    fill(Filler(scores=scores))
    realized = select.select_images(make_pool(store=tmp_path / "another"), ask({"p": np.array([[0, 43], [43, 0]])}))
    summary = summarize([realized])
    assert summary["rejected"] == {}
    assert summary["purity"] == pytest.approx(realized.purity[1].sum() / 96, abs=1e-4)
    assert summary["cell_purity"][0] == [None, pytest.approx(realized.purity[1][CELL] / 48, abs=1e-4)]


def test_no_purity_without_a_scorer(make_pool, fill):
    fill(Filler())
    nothing = summarize([])
    assert (nothing["purity"], nothing["cell_purity"], nothing["rejected"]) == (None, None, {})
    unscored = summarize([select.select_images(make_pool(scorer=None), ask({"p": np.array([[4, 0], [0, 0]])}))])
    assert (unscored["purity"], unscored["cell_purity"]) == (None, None)


def test_purity_without_groups(make_pool, fill):
    fill(Filler(scores=lambda label, group, index: {"clip_label": index % 2, "clip_group": -1}))
    pool = make_pool(names=LabelSpace(("star", "disc")), prompts={"template": "a {label}"})
    realized = select.select_images(pool, ask({"p": np.array([[4], [0]])}, zero_shot="cell"))
    assert realized.views["m", "p"].column("index").tolist() == [0, 2, 4, 6]
    assert realized.purity.tolist() == [[[8], [0]], [[4], [0]]]
    assert "zero_shot: CLIP sees disc" in realized.rejects.index["reason"].to_pylist()


# -- the user's own ----------------------------------------------------------------------------------------------------


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_filters.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_filters", raising=False)


@pytest.mark.usefixtures("own_module")
def test_a_users_own_filter(filled):
    selection = {"clip_similarity": 0.2, "custom": {"own_filters:dull": {"least": 0.5}}}
    verdicts = reasons(filled(selection=selection), CELL, 6)
    for index in usable(CELL, 48):
        value = scores(*CELL, index)["clip_similarity"]
        expected = "clip_similarity" if value < 0.2 else "own_filters:dull" if value <= 0.5 else None
        assert (verdicts[index] and verdicts[index].filter) == expected


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:dull", "cannot be imported"),
        ("own_filters:dul", "did you mean 'dull'"),
        ("own_filters:number", "no such function"),
    ],
)
def test_a_filter_that_is_not_there(make_pool, reference, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Verdicts(make_pool(), Selection(custom={reference: None}))
    assert caught.value.where == "selection.custom"
    assert reference in str(caught.value)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize("name", ["forgetful", "boolean"])
def test_a_filter_that_says_something_else(filled, name):
    verdicts = filled(1, {"custom": {f"own_filters:{name}": None}})
    with pytest.raises(ConfigError, match="a reason or None for each image"):
        verdicts.accepted(verdicts.pool.index.prefix(*CELL))


@pytest.mark.parametrize("reference", ["dull", ":dull", "module:", "a b:c", "module.:f"])
def test_a_reference_that_is_none(reference):
    with pytest.raises(ValueError, match="module:function"):
        Selection(custom={reference: None})


@pytest.mark.usefixtures("ray_cluster")
def test_on_a_cluster_image_filters_judge_in_tasks_and_come_to_the_same(filled, monkeypatch):
    """The driver, whose node may be small, judges nothing."""
    selection = {"near_duplicate": THRESHOLD, "clip_similarity": 0.2, "max_draw": 20}
    judged = filled(selection=selection)
    wanted = {"p": np.array([[0, 5], [4, 0]])}
    here = select.select_images(judged.pool, ask(wanted, max_quarantined=1.0, **selection))

    pool = Pool(judged.pool.spec, judged.pool.names, judged.pool.store)
    monkeypatch.setattr(graph, "joins_a_cluster", lambda: True)
    monkeypatch.setattr(filters, "evaluate_filters", None)
    there = select.select_images(pool, ask(wanted, max_quarantined=1.0, **selection))
    assert there.views["m", "p"].digest == here.views["m", "p"].digest
    assert there.rejects.column("reason").tolist() == here.rejects.column("reason").tolist()
    assert there.rejected == here.rejected
    assert here.rejected["near_duplicate"] > 0
    assert here.sampled == 0
    counts = Verdicts(Pool(pool.spec, pool.names, pool.store), Selection(**selection)).available_counts()
    assert counts[0, 1] >= 5
