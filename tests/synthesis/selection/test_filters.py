"""Filters on a pool without models: what each rejects, why, and that a verdict follows from the address alone."""

import numpy as np
import pytest

from counterpoise.config import Selection
from counterpoise.errors import ConfigError
from counterpoise.storage.codec import encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.selection import filters, select
from counterpoise.synthesis.selection.selected_images import summary as summarize
from counterpoise.synthesis.selection.verdicts import Verdicts
from filler import Filler, ask

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
        "clip_embedding": vector(label, group, index).astype(np.float16),
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


def reasons(verdicts, cell, shards):
    return [verdict for number in range(shards) for verdict in verdicts.of(Shard(*cell, number))]


def usable(cell, count):
    return [index for index in range(count) if not is_bad(*cell, index)]


# -- which are on ------------------------------------------------------------------------------------------------------


def test_every_filter_has_a_key_and_is_off_by_default(filled):
    assert set(filters.FILTERS) == set(Selection.model_fields) - {"custom", "max_draw"}
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
    from counterpoise.storage.view import ImageView

    pool = make_pool()
    red = np.random.default_rng(0).integers(0, 100, (8, 8, 3), np.uint8) + np.array([30, 0, 0], np.uint8)
    grey = np.repeat(red[..., :1], 3, axis=-1)
    Filler().put(pool, Shard(0, 0, 0))

    class Two(ImageView):
        def images(self):
            yield from enumerate(map(encode_image, (red, grey)))

    view = Two(pool.store, pool.names, pool.rows(Shard(0, 0, 0)).slice(0, 2))
    lead = abs(red.mean() - red[..., 0].mean())
    assert 15 < lead < 25
    assert filters.grey(filters.Candidates(view), 5.7) == [None, "grey: red within 0.00 < 5.7 levels of the mean"]
    assert filters.grey(filters.Candidates(view), lead + 0.1)[0] is not None
    assert len(Verdicts(pool, Selection(grey=5.7)).of(Shard(0, 0, 0))) == 8


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
    backwards = [many.of(Shard(*cell, number)) for number in (5, 2, 0) for cell in (CELL, OTHER)]
    assert reasons(few, CELL, 3) == reasons(many, CELL, 3)
    assert backwards[4] == few.of(Shard(*CELL, 0))
    assert backwards[3] == few.of(Shard(*OTHER, 2))


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
    verdicts = Verdicts(pool, Selection(near_duplicate=0.5))
    for number in range(3):
        Filler(defect=lambda label, group, index: 8 <= index < 16, scores=lambda *_: scores(0, 0, 0)).put(
            pool, Shard(0, 0, number)
        )
    kinds = [[verdict and verdict.filter for verdict in verdicts.of(Shard(0, 0, number))] for number in range(3)]
    assert kinds == [[None] + ["near_duplicate"] * 7, ["quarantined"] * 8, ["near_duplicate"] * 8]


def test_what_lies_behind_a_hole_is_not_held(filled):
    verdicts = filled(2)
    held = verdicts.available_counts()
    Filler().put(verdicts.pool, Shard(*CELL, 3))
    assert verdicts.available_counts().tolist() == held.tolist()
    Filler().put(verdicts.pool, Shard(*CELL, 2))
    assert verdicts.available_counts()[CELL] == held[CELL] + 16


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
    rejects = verdicts.rejects([Shard(*CELL, number) for number in range(6)])
    low = rejects.where(filter="clip_similarity")
    assert low.column("index").tolist() == [
        index for index in usable(CELL, 48) if scores(*CELL, index)["clip_similarity"] < 0.4
    ]
    assert all(reason.endswith("< 0.4") for reason in low.index["reason"].to_pylist())
    assert all(data for _, data in low.images())
    assert rejects.where(filter="quarantined").column("index").tolist() == [3, 14, 25, 36, 47]
    assert len(verdicts.rejects([]).where(filter="clip_similarity")) == 0


def test_purity_is_the_share_in_the_own_cell(filled, make_pool, fill, tmp_path):
    shards = [Shard(*cell, number) for cell in (CELL, OTHER) for number in range(6)]
    scored, pure = filled().pool.purity(shards)
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
        verdicts.of(Shard(*CELL, 0))


@pytest.mark.parametrize("reference", ["dull", ":dull", "module:", "a b:c", "module.:f"])
def test_a_reference_that_is_none(reference):
    with pytest.raises(ValueError, match="module:function"):
        Selection(custom={reference: None})
