"""Cost of a method's images: what it took to sample them, whoever did, in however many runs."""

import numpy as np
import pytest

from counterpoise.errors import SynthesisError
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.selection import select
from filler import Filler, ask

WANTED = {"p": np.array([[40, 9], [0, 24]])}
SHARDS = [Shard(*cell, number) for *cell, count in ((0, 0, 5), (0, 1, 2), (1, 1, 3)) for number in range(count)]


def seconds(shard):
    return {"sample": 1.0 + 3 * shard.number + 10 * shard.group, "encode": 0.25, "score": 100.0, "commit": 1000.0}


def of_shards(shards):
    """Sampling is drawing and encoding; scoring and storing are not the generator's."""
    return sum(seconds(shard)["sample"] + 0.25 for shard in shards)


def cost_of(pool, requests=None, method="m"):
    return select.select_images(pool, requests or ask(WANTED)).methods[method].cost


def test_the_cost_is_that_of_the_shards_considered(make_pool, fill):
    fill(Filler(seconds=seconds))
    cost = cost_of(make_pool())
    assert cost.images == 80
    assert cost.seconds == pytest.approx(of_shards(SHARDS))


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("half", [0, 1, 4, 10])
def test_it_does_not_depend_on_an_interruption(make_pool, fill, half, gather):
    filler = fill(Filler(seconds=seconds))
    first = make_pool()
    for shard in SHARDS[:half]:
        filler.put(first, shard)
    if gather:
        first.index.gather()
    cost = cost_of(make_pool())
    assert sum(map(len, filler.rounds)) == 10 - half
    assert cost.seconds == pytest.approx(of_shards(SHARDS))
    assert cost_of(make_pool()) == cost
    assert len(filler.rounds) <= 1  # the last sampled nothing


def test_it_does_not_depend_on_a_run_that_failed(make_pool, fill):
    """Its shards are committed, and it never came to gather their rows."""

    class Failing(Filler):
        def __call__(self, pool, shards, on_receipt):
            super().__call__(pool, shards[:4], on_receipt)
            raise SynthesisError("killed")

    fill(Failing(seconds=seconds))
    with pytest.raises(SynthesisError, match="killed"):
        cost_of(make_pool())
    filler = fill(Filler(seconds=seconds))
    cost = cost_of(make_pool())
    assert len(filler.rounds[0]) == 6
    assert cost.seconds == pytest.approx(of_shards(SHARDS))


def test_it_does_not_depend_on_who_sampled_the_images(make_pool, fill, tmp_path):
    """Another method did, or this one; alone, or in the same call."""
    fill(Filler(seconds=seconds))
    other = {"q": np.array([[17, 0], [8, 24]])}
    alone = cost_of(make_pool(store=tmp_path / "alone"))
    together = ask(WANTED) + ask(other, method="other")
    both = select.select_images(make_pool(), together)
    assert both.methods["m"].cost == alone
    first = [Shard(0, 0, n) for n in range(3)] + [Shard(1, 0, 0)] + [Shard(1, 1, n) for n in range(3)]
    assert both.methods["other"].cost.seconds == pytest.approx(of_shards(first))
    later = make_pool(store=tmp_path / "later")
    cost_of(later, ask(other, method="other"), "other")
    assert cost_of(make_pool(store=tmp_path / "later")) == alone


def test_a_shard_without_a_record_counts_as_the_mean(make_pool, fill):
    filler, pool = fill(Filler(seconds=seconds)), make_pool()
    for shard in SHARDS:
        filler.put(pool, shard)
    unknown = [SHARDS[4], SHARDS[6]]
    segments.delete_notes(pool.store, pool.digest, unknown)
    known = [shard for shard in SHARDS if shard not in unknown]
    cost = cost_of(make_pool())
    assert cost.images == 80
    assert cost.seconds == pytest.approx(of_shards(known) / 8 * 10)
    assert cost_of(make_pool()) == cost


def test_without_any_record_the_cost_is_unknown(make_pool, fill):
    filler, pool = fill(Filler(seconds=seconds)), make_pool()
    for shard in SHARDS:
        filler.put(pool, shard)
    segments.delete_notes(pool.store, pool.digest, SHARDS)
    cost = cost_of(make_pool())
    assert (cost.images, cost.seconds) == (80, None)


def test_no_images_cost_nothing(make_pool, fill):
    fill(Filler(seconds=seconds))
    cost = cost_of(make_pool(), ask({"p": np.zeros((2, 2), int)}))
    assert (cost.images, cost.seconds) == (0, 0.0)


def test_a_shard_that_another_process_stored_meanwhile_costs_what_it_cost_there(make_pool, fill):
    """Both sampled it; the pool has the other's shard, and its record."""
    other = make_pool()

    class Slower(Filler):
        def __call__(self, pool, shards, on_receipt):
            for shard in shards[:3]:
                Filler(seconds=lambda one: {"sample": 50.0, "encode": 0.0}).put(other, shard)
            return super().__call__(pool, shards, on_receipt)

    fill(Slower(seconds=seconds))
    cost = cost_of(make_pool())
    assert cost.seconds == pytest.approx(3 * 50 + of_shards(SHARDS[3:]))
    assert cost_of(make_pool()) == cost
