"""A graph of work: each piece once, after what it needs, side by side where that is possible."""

import os
import time
from pathlib import Path

import pytest

from counterpoise.config import ActorResources
from counterpoise.errors import ConfigError
from counterpoise.execution import cluster, graph
from counterpoise.storage.uri import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


@pytest.fixture
def node(store):
    """Makes nodes that leave when they began and ended, and where they ran. The class is local: Ray sends it along."""

    class Node:
        def __init__(self, digest, *parents, num_workers=1, seconds=0.0, fails=None, at_once=None, meets=None):
            self.digest, self.parents, self.num_workers = digest, parents, num_workers
            self.seconds, self.fails, self.store, self.meets = seconds, fails, store, meets
            self.resources = ActorResources(workers=at_once, num_cpus=0.5)

        def note(self):
            return self.digest

        def done(self):
            return self.store.exists(self.digest)

        def run(self):
            began = time.time()
            missing = [parent.digest for parent in self.parents if not parent.done()]
            assert not missing, missing
            self.store.replace(f"{self.digest} began", b"")
            while self.meets and not self.store.exists(f"{self.meets} began"):  # until the other one runs, too
                assert time.time() < began + 60, f"{self.meets} did not begin while {self.digest} ran"
                time.sleep(0.05)
            time.sleep(self.seconds)
            if self.fails:
                raise self.fails
            assert self.store.create(self.digest, f"{began} {time.time()} {os.getpid()}".encode()), "done twice"

    return Node


def digests(nodes):
    return [node.digest for node in nodes]


def left(store, digest):
    began, ended, process = (Path(store.uri) / digest).read_text().split()
    return float(began), float(ended), int(process)


def test_what_is_needed_comes_once_and_after_its_parents(node, store):
    def method(last):  # every method makes nodes of its own for the stages that it shares
        first = node("first")
        return node(last, first, node("second", first))

    store.create("there", b"")
    needed = graph.needed([method("a"), method("b"), node("c", node("there", node("long gone")))])
    assert list(needed) == ["first", "second", "a", "b", "c"]
    assert graph.needed([node("there")]) == {}


def test_a_chain_runs_in_this_process(node, store, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda: pytest.fail("Ray was started for one thing at a time"))
    first = node("first")
    second = node("second", first, num_workers=4)
    done = graph.run(graph.needed([node("third", first, second)]))
    assert digests(done) == ["first", "second", "third"]
    assert {left(store, digest)[2] for digest in ("first", "second", "third")} == {os.getpid()}
    assert list(graph.run({})) == []


def test_branches_run_side_by_side_and_the_shared_beginning_once(node, store, ray_cluster):
    def method(name, other):
        return node(name, node(f"{name} 2", node("shared"), meets=f"{other} 2"))

    done = digests(graph.run(graph.needed([method("a", "b"), method("b", "a")])))
    assert done[0] == "shared"
    assert sorted(done) == ["a", "a 2", "b", "b 2", "shared"]
    assert os.getpid() not in {left(store, digest)[2] for digest in done}


def test_no_more_run_at_once_than_allowed(node, store, ray_cluster):
    names = [f"node {n}" for n in range(5)]
    done = digests(graph.run(graph.needed([node(name, seconds=0.2, at_once=2) for name in names])))
    assert sorted(done) == names
    times = [left(store, name)[:2] for name in names]
    overlaps = [sum(began < other < ended for began, ended in times) for other, _ in times]
    assert max(overlaps) <= 1


def test_nodes_of_several_workers_run_from_here_one_at_a_time(node, store, ray_cluster):
    large = [node(f"large {n}", node("small"), num_workers=2, seconds=0.2) for n in range(2)]
    done = digests(graph.run(graph.needed([*large, node("end", *large)])))
    assert done == ["small", "large 0", "large 1", "end"]
    assert left(store, "large 0")[1] <= left(store, "large 1")[0]
    assert {left(store, f"large {n}")[2] for n in range(2)} == {os.getpid()}
    assert left(store, "end")[2] != os.getpid()


def test_a_failure_ends_the_rest_and_is_raised_as_it_was(node, store, ray_cluster):
    wrong = ConfigError("training diverged", where="stage 'a'", remedy="lower the learning rate")
    slow = node("slow", seconds=60)
    needed = graph.needed([node("after", node("bad", seconds=0.5, fails=wrong)), node("later", slow)])
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        list(graph.run(needed))
    assert str(caught.value) == str(wrong)
    assert time.monotonic() - began < 40
    assert not any(store.exists(digest) for digest in ("slow", "after", "later"))


def test_a_failure_in_a_chain_is_raised_as_it_was(node, store):
    with pytest.raises(ZeroDivisionError, match="here"):
        list(graph.run(graph.needed([node("after", node("bad", fails=ZeroDivisionError("here")))])))
    assert not store.exists("after")
