"""Selection on random pools, against a plain loop over shards that knows nothing of ranks, masks or rounds."""

import math
import sys
import types

import numpy as np
import pytest

from counterpoise.config import Selection
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.verdicts import Verdicts
from filler import Filler, ask

SIZE = 8
CELLS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Images:
    """What the images of a pool are like, by address, from one seed."""

    def __init__(self, seed):
        self.seed = seed
        self.defects, self.right = np.random.default_rng(seed).uniform((0, 0.5), (0.3, 1)).tolist()

    def random(self, label, group, index, what):
        return float(np.random.default_rng([self.seed, label, group, index, what]).random())

    def margin(self, label, group, index):
        return float(np.float32(self.random(label, group, index, 0)))

    def is_bad(self, label, group, index):
        return self.random(label, group, index, 1) < self.defects

    def scores(self, label, group, index):
        right = self.random(label, group, index, 2) < self.right
        return {"clip_label": label if right else 1 - label, "clip_group": group}

    def is_odd(self, label, group, index):
        return self.random(label, group, index, 3) < 0.2

    def filler(self):
        return Filler(self.margin, self.is_bad, self.scores, lambda one: {"sample": self.seconds(one), "encode": 0.0})

    def seconds(self, shard):
        return 1.0 + shard.number + 10 * shard.group

    def verdict(self, selection, address):
        """The first filter that rejects an image; None if a plan may take it."""
        if self.is_bad(*address):
            return "quarantined"
        if selection.clip_margin is not None and not self.margin(*address) >= selection.clip_margin:
            return "clip_margin"
        if selection.zero_shot and self.scores(*address)["clip_label"] != address[0]:
            return "zero_shot"
        if selection.custom and self.is_odd(*address):
            return "odd:odd"
        return None


def considered(images, selection, cell, count):
    """The images of a cell's shards until ``count`` are accepted or the bound is reached: (index, verdict)."""
    seen, accepted = [], 0
    for number in range(math.ceil(count * selection.max_draw / SIZE - 1e-9)):
        if accepted >= count:
            break
        for index in range(number * SIZE, (number + 1) * SIZE):
            verdict = images.verdict(selection, (*cell, index))
            seen.append((index, verdict))
            accepted += verdict is None
    return seen


def by_loop(images, requests):
    """What a method's plans take, lack and reject, and what it costs."""
    views, short, rejects, shards = {}, [], [], []
    selection = requests[0].selection
    for request in requests:
        views[request.plan] = []
        for cell in CELLS:
            wanted = int(request.counts[cell])
            if not wanted:
                continue
            seen = considered(images, selection, cell, wanted + request.skip)
            taken = [index for index, verdict in seen if verdict is None][request.skip :][:wanted]
            views[request.plan] += [(*cell, index) for index in taken]
            if len(taken) < wanted:
                short.append((request.plan, cell, wanted, len(taken)))
    for cell in CELLS:
        most = max((int(one.counts[cell]) + one.skip for one in requests if one.counts[cell]), default=0)
        seen = considered(images, selection, cell, most) if most else []
        rejects += [(*cell, index, verdict) for index, verdict in seen if verdict]
        shards += [Shard(*cell, number) for number in range(len(seen) // SIZE)]
    return views, short, rejects, shards


def random_requests(rng, custom):
    """One or two methods with one to three plans each."""
    requests = []
    for method in ("one", "two")[: rng.integers(1, 3)]:
        filters = {"max_draw": float(rng.choice([1.0, 1.5, 2.0, 3.7, 8.0]))}
        if rng.random() < 0.7:
            filters["clip_margin"] = float(rng.uniform(0, 0.8))
        if rng.random() < 0.5:
            filters["zero_shot"] = "label"
        if custom and rng.random() < 0.7:
            filters["custom"] = {"odd:odd": None}
        names = ["a", "b", "c"][: rng.integers(1, 4)]
        plans = {name: rng.integers(0, 30, (2, 2)) * (rng.random((2, 2)) < 0.7) for name in names}
        skip = {name: int(rng.integers(0, 20)) * int(rng.random() < 0.5) for name in names}
        requests += ask(plans, skip, method=method, max_quarantined=1.0, **filters)
    return requests


def addresses(view):
    return [tuple(map(int, row)) for row in zip(view.labels, view.groups, view.column("index"), strict=True)]


@pytest.mark.parametrize("seed", range(24))
def test_selection_is_what_a_loop_over_shards_selects(make_pool, names, fill, monkeypatch, seed):
    rng, images = np.random.default_rng(seed), Images(seed)

    def odd(candidates, settings):
        rows = candidates.rows.to_pylist()
        return ["odd" if images.is_odd(*(row[name] for name in ("label", "group", "index"))) else None for row in rows]

    monkeypatch.setitem(sys.modules, "odd", types.SimpleNamespace(odd=odd))
    requests, filler = random_requests(rng, custom=seed % 2 == 0), fill(images.filler())
    before = make_pool()
    held = [Shard(*cell, number) for cell in CELLS for number in range(12) if rng.random() < 0.3]
    for place in rng.permutation(len(held)):  # with holes, in any order
        filler.put(before, held[place])
    if rng.random() < 0.5:
        before.index.gather()

    pool = make_pool()
    realized = select.select_images(pool, requests)
    again = select.select_images(make_pool(), requests)
    assert again.sampled == 0
    everything, purity = set(), np.zeros((2, 2, 2), int)
    for method, found in realized.methods.items():
        own = [request for request in requests if request.method == method]
        views, short, rejects, shards = by_loop(images, own)
        assert {plan: addresses(view) for plan, view in found.views.items()} == views
        assert [(one.plan, one.cell, one.wanted, one.got) for one in found.short] == [
            ((method, plan), names.cell(*cell), wanted, got) for plan, cell, wanted, got in short
        ]
        filters = found.rejects.column("filter").tolist()
        assert [(*address, name) for address, name in zip(addresses(found.rejects), filters, strict=True)] == rejects
        assert found.quarantined == sum(name == "quarantined" for *_, name in rejects)
        assert all(count == sum(name == kind for *_, kind in rejects) for name, count in found.rejected.items())
        assert [pool.index.shard_at(rank) for rank in found.shards.tolist()] == shards
        assert found.cost.images == SIZE * len(shards)
        assert found.cost.seconds == pytest.approx(sum(map(images.seconds, shards)), rel=1e-5)
        everything |= set(shards)
        assert {plan: view.digest for plan, view in again.methods[method].views.items()} == {
            plan: view.digest for plan, view in found.views.items()
        }
        assert again.methods[method].cost == found.cost
        assert again.methods[method].rejects.index["reason"].equals(found.rejects.index["reason"])
    for shard in everything:
        for index in range(shard.number * SIZE, (shard.number + 1) * SIZE):
            address = (shard.label, shard.group, index)
            if not images.is_bad(*address):
                purity[0, shard.label, shard.group] += 1
                purity[1, shard.label, shard.group] += images.scores(*address)["clip_label"] == shard.label
    assert realized.purity.tolist() == purity.tolist()
    assert realized.shards == len(everything)
    sampled = {shard for shards in filler.rounds for shard in shards}
    assert everything <= sampled | set(held)
    assert not sampled & set(held)
    assert realized.sampled == SIZE * len(sampled) == SIZE * sum(map(len, filler.rounds))
    assert realized.reused == SIZE * len(everything - sampled)


@pytest.mark.parametrize("seed", range(6))
def test_what_a_pool_holds_is_what_a_loop_counts(make_pool, seed):
    rng, images, pool = np.random.default_rng(seed), Images(seed), make_pool()
    held = {Shard(*cell, number) for cell in CELLS for number in range(6) if rng.random() < 0.8}
    for shard in held:
        images.filler().put(pool, shard)
    selection = Selection(clip_margin=0.4, zero_shot="label")
    counts = np.zeros((2, 2), int)
    for cell in CELLS:
        number = 0
        while Shard(*cell, number) in held:
            indices = range(number * SIZE, (number + 1) * SIZE)
            counts[cell] += sum(images.verdict(selection, (*cell, index)) is None for index in indices)
            number += 1
    assert Verdicts(pool, selection).available_counts().tolist() == counts.tolist()
