"""Views on the pool: what is drawn, what is taken, what stays short.

Shards are written here without Ray, with scores and defects that follow from the address, so that a test can say which
images must be taken; test_pool.py draws real ones.
"""

import numpy as np
import pytest

from counterpoise.config import Selection
from counterpoise.errors import SynthesisError
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.selected_images import Shortfall, summary
from counterpoise.synthesis.selection.verdicts import Verdicts
from filler import Filler, ask


def scattered(label, group, index):
    """Uniform in [0, 1], fixed for each address."""
    return float(np.random.default_rng([label, group, index]).random())


def ids(view):
    return view.index["id"].to_pylist()


def test_takes_the_first_of_each_cell(make_pool, fill):
    filler = fill(Filler())
    pool = make_pool()
    realized = select.select_images(pool, ask({"plan": np.array([[10, 3], [0, 8]])}))
    view = realized.views["m", "plan"]
    expected = [(0, 0, 10), (0, 1, 3), (1, 1, 8)]
    assert ids(view) == [f"{pool.digest}-{a}-{b}-{index}" for a, b, count in expected for index in range(count)]
    assert view.counts.tolist() == [[10, 3], [0, 8]]
    assert filler.rounds == [[Shard(0, 0, 0), Shard(0, 0, 1), Shard(0, 1, 0), Shard(1, 1, 0)]]
    assert (realized.sampled, realized.reused, realized.images, realized.shards) == (32, 0, 21, 4)
    assert realized.short == []
    assert pool.index.shards == filler.rounds[0]
    assert Verdicts(pool, Selection()).available_counts().tolist() == [[16, 8], [0, 8]]


def test_the_same_again_samples_nothing(make_pool, fill):
    filler = fill(Filler())
    wanted = {"plan": np.array([[10, 3], [0, 8]])}
    first = select.select_images(make_pool(), ask(wanted))
    second = select.select_images(make_pool(), ask(wanted))
    assert len(filler.rounds) == 1
    assert (second.sampled, second.reused) == (0, 32)
    assert second.images_per_second is None
    assert second.views["m", "plan"].digest == first.views["m", "plan"].digest


def test_the_index_is_written_while_it_samples(make_pool, fill, monkeypatch):
    """A round that ends with an error leaves its full segments, and the rest in notes."""

    class Breaking(Filler):
        def put(self, pool, shard):
            if shard.number == 5:
                raise KeyboardInterrupt
            return super().put(pool, shard)

    monkeypatch.setattr(segments, "SHARDS", 2)
    fill(Breaking())
    pool = make_pool()
    with pytest.raises(KeyboardInterrupt):
        select.select_images(pool, ask({"plan": np.array([[48, 0], [0, 0]])}))
    kinds = [key.split("/")[2] for key in pool.store.list(f"pool/{pool.digest}/")]
    assert (kinds.count("index"), kinds.count("notes"), kinds.count("0-0")) == (2, 1, 5)
    assert len(pool.index) == len(make_pool().index) == 5


def test_plans_share_what_both_want(make_pool, fill):
    filler = fill(Filler())
    realized = select.select_images(
        make_pool(),
        ask({"a": np.array([[20, 0], [0, 0]])}, method="ffr") + ask({"b": np.array([[8, 8], [0, 0]])}, method="usb"),
    )
    assert [len(shards) for shards in filler.rounds] == [4]
    assert set(ids(realized.views["usb", "b"])[:8]) < set(ids(realized.views["ffr", "a"]))
    assert realized.images == 28
    assert summary([realized])["sampled"] == 32


def test_a_larger_plan_keeps_the_smaller_ones_images(make_pool, fill):
    filler = fill(Filler())
    small = select.select_images(make_pool(), ask({"p": np.array([[10, 0], [0, 0]])}))
    large = select.select_images(make_pool(), ask({"p": np.array([[30, 0], [0, 0]])}))
    assert ids(large.views["m", "p"])[:10] == ids(small.views["m", "p"])
    assert filler.rounds[1] == [Shard(0, 0, 2), Shard(0, 0, 3)]
    assert (large.sampled, large.reused) == (16, 16)


def test_tops_up_until_the_plan_is_met(make_pool, fill):
    filler = fill(Filler(scattered))
    pool = make_pool()
    realized = select.select_images(pool, ask({"p": np.array([[40, 40], [0, 40]])}, clip_margin=0.6, max_draw=10))
    assert realized.short == []
    assert 2 <= len(filler.rounds) <= 4
    view = realized.views["m", "p"]
    rejected = 0
    for label, group in ((0, 0), (0, 1), (1, 1)):
        passing = [index for index in range(1000) if np.float32(scattered(label, group, index)) >= 0.6][:40]
        assert view.where(label=label, group=group).column("index").tolist() == passing
        looked_into = (passing[-1] // 8 + 1) * 8
        rejected += sum(np.float32(scattered(label, group, index)) < 0.6 for index in range(looked_into))
    drawn = sum(map(len, filler.rounds)) * 8
    assert realized.sampled == drawn
    assert 260 <= drawn <= 400  # 120 wanted, of which two in five pass
    assert realized.rejected == {"clip_margin": rejected}
    assert summary([realized, realized])["rejected"] == {"clip_margin": 2 * rejected}


def test_another_threshold_resamples_nothing(make_pool, fill):
    filler = fill(Filler(scattered))
    strict = make_pool()
    select.select_images(strict, ask({"p": np.array([[40, 0], [0, 0]])}, clip_margin=0.6, max_draw=10))
    rounds = len(filler.rounds)
    loose = select.select_images(make_pool(), ask({"p": np.array([[40, 0], [0, 0]])}, clip_margin=0.1))
    assert len(filler.rounds) == rounds
    assert loose.views["m", "p"].column("index").max() < 60


def test_says_which_cells_stayed_short(make_pool, fill):
    filler = fill(Filler(lambda label, group, index: 1.0 if label == 0 else -1.0))
    pool = make_pool()
    realized = select.select_images(pool, ask({"p": np.array([[16, 0], [16, 0]])}, clip_margin=0.0, max_draw=2))
    assert realized.short == [Shortfall(("m", "p"), "disc × red", 16, 0)]
    drawn = {shard for shards in filler.rounds for shard in shards}
    assert drawn == {Shard(0, 0, 0), Shard(0, 0, 1), *(Shard(1, 0, number) for number in range(4))}
    assert summary([realized])["short_cells"] == [{"plan": "m/p", "cell": "disc × red", "wanted": 16, "got": 0}]
    again = select.select_images(pool, ask({"p": np.array([[16, 0], [16, 0]])}, clip_margin=0.0, max_draw=2))
    assert (again.sampled, again.short) == (0, realized.short)


def test_the_bound_is_the_plans_own(make_pool, fill):
    """What a plan shows must not depend on what another one drew: also if the pool happens to hold more."""
    fill(Filler(lambda label, group, index: 1.0 if index >= 24 else -1.0))
    pool = make_pool()
    both = select.select_images(
        pool,
        ask({"small": np.array([[8, 0], [0, 0]]), "large": np.array([[16, 0], [0, 0]])}, clip_margin=0.0, max_draw=3),
    )
    assert len(both.views["m", "small"]) == 0
    assert both.views["m", "large"].column("index").tolist() == list(range(24, 40))


def test_methods_with_other_filters_share_the_pool_and_no_verdict(make_pool, fill, tmp_path):
    """Each takes, misses and rejects what it does alone; one pass samples what both need."""
    wanted = {"p": np.array([[12, 0], [0, 8]])}
    loose = ask(wanted, method="loose", clip_margin=0.2)
    strict = ask(wanted, method="strict", clip_margin=0.9, max_draw=2)
    filler = fill(Filler(scattered))
    pool, shards = make_pool(), {}
    both = select.select_images(pool, loose + strict)
    assert [len(shards) for shards in filler.rounds[:1]] == [3]
    drawn = {shard for shards in filler.rounds for shard in shards}
    for requests in (loose, strict):
        method = requests[0].method
        own = make_pool(store=tmp_path / method)
        alone = select.select_images(own, requests)
        assert both.views[method, "p"].digest == alone.views[method, "p"].digest
        found, expected = both.methods[method], alone.methods[method]
        assert (found.short, found.rejected) == (expected.short, expected.rejected)
        shards[method] = {pool.index.shard_at(rank) for rank in found.shards.tolist()}
        assert shards[method] == {own.index.shard_at(rank) for rank in expected.shards.tolist()}
        assert found.purity.tolist() == expected.purity.tolist()
        assert found.rejects.index["reason"].to_pylist() == expected.rejects.index["reason"].to_pylist()
        assert shards[method] <= drawn
    assert both.methods["loose"].short == []
    assert len(both.methods["strict"].short) == 2
    assert both.short == both.methods["strict"].short
    assert both.methods["loose"].rejected["clip_margin"] < both.methods["strict"].rejected["clip_margin"]
    # of the pool as a whole each image counts once, also if both reject it
    everything = both.rejects.column("id").tolist()
    assert len(set(everything)) == len(everything) == both.rejected["clip_margin"]
    assert both.shards == len(shards["loose"] | shards["strict"])
    assert both.sampled == 8 * len(drawn)


def test_a_forecast_is_of_the_methods_own_filters(make_pool, fill):
    fill(Filler(scattered))
    pool, wanted = make_pool(), {"p": np.array([[16, 0], [0, 0]])}
    loose, strict = ask(wanted, method="loose"), ask(wanted, method="strict", clip_margin=0.5)
    assert [counts.sum() for counts in select.forecast(pool, loose + strict)] == [0, 16]
    select.select_images(pool, loose)
    passing = sum(np.float32(scattered(0, 0, index)) >= 0.5 for index in range(16))
    assert [counts.sum() for counts in select.forecast(pool, loose)] == [16, 0]
    assert [counts.sum() for counts in select.forecast(pool, strict)] == [passing, 16 - passing]
    assert [counts.sum() for counts in select.forecast(pool, loose + strict)] == [passing, 16 - passing]


def test_a_plan_can_leave_the_first_images_to_others(make_pool, fill):
    filler = fill(Filler(lambda label, group, index: -1.0 if index == 11 else 1.0))
    pool = make_pool()
    wanted = {"train": np.array([[10, 0], [0, 0]]), "test": np.array([[9, 0], [0, 0]])}
    realized = select.select_images(pool, ask(wanted, {"test": 10}, clip_margin=0.0))
    assert realized.views["m", "train"].column("index").tolist() == list(range(10))
    assert realized.views["m", "test"].column("index").tolist() == [10, *range(12, 20)]
    assert (realized.images, realized.short) == (19, [])
    assert [len(shards) for shards in filler.rounds] == [3]  # 8 a shard; the cells that want nothing are left alone


def test_a_hole_is_filled_first(make_pool, fill):
    """After a kill, later shards may be there and earlier ones not."""
    filler = fill(Filler())
    pool = make_pool()
    for number in (0, 2, 3):
        filler.put(pool, Shard(0, 0, number))  # the pool's index is not loaded yet
    wanted = np.array([[20, 0], [0, 0]])
    realized = select.select_images(pool, ask({"p": wanted}))
    assert filler.rounds == [[Shard(0, 0, 1)]]
    assert realized.views["m", "p"].column("index").tolist() == list(range(20))


def test_quarantined_images_are_never_taken(make_pool, fill):
    filler = fill(Filler(defect=lambda label, group, index: index % 8 == 3))
    pool = make_pool()
    realized = select.select_images(pool, ask({"p": np.array([[16, 0], [0, 0]])}, max_quarantined=0.2))
    assert realized.views["m", "p"].column("index").tolist() == [index for index in range(24) if index % 8 != 3][:16]
    assert realized.quarantined == 3
    assert len(filler.rounds) == 2
    assert Verdicts(pool, Selection()).available_counts()[0, 0] == 21


def test_too_many_quarantined_images_are_an_error(make_pool, fill):
    filler = fill(Filler(defect=lambda label, group, index: label == 1))
    pool = make_pool()
    wanted = {"p": np.array([[80, 0], [80, 0]])}
    with pytest.raises(SynthesisError, match="one colour all over") as caught:
        select.select_images(pool, ask(wanted))
    assert "max_quarantined" in str(caught.value)
    before = len(make_pool().index)
    assert before == 10 + 2  # ended as soon as it was certain that the share is above 0.05
    with pytest.raises(SynthesisError, match="one colour all over"):
        select.select_images(make_pool(), ask(wanted))
    assert filler.rounds[1][0] == Shard(1, 0, 2)
    assert len(make_pool().index) == before + 1


def test_no_plans_no_work(make_pool, fill):
    filler = fill(Filler())
    realized = select.select_images(make_pool(), ask({"p": np.zeros((2, 2), int)}))
    assert filler.rounds == []
    assert len(realized.views["m", "p"]) == 0
    assert realized.views["m", "p"].counts.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("accepted", "drawn", "wanted", "typical", "shards"),
    [
        (0, 0, 80, 1.0, 10),  # nothing known: as if all passed
        (0, 0, 80, 0.5, 22),  # other cells lose half: 160 and a tenth
        (40, 80, 80, 0.5, 11),
        (79, 80, 80, 1.0, 1),
        (0, 80, 80, 0.0, 11000),  # nothing ever passed: the bound decides
    ],
)
def test_how_many_shards_a_round_draws(accepted, drawn, wanted, typical, shards):
    assert select.shards_to_draw(accepted, drawn, wanted, typical, 8) == shards


def test_bounds():
    assert select.bound(16, 2.0, 8) == 4
    assert select.bound(5, 1.0, 8) == 1
    assert select.bound(0, 3.0, 8) == 0
