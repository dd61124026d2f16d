"""Work that needs other work: each piece once, as soon as what it needs is there, as many at once as there is room for.

A piece of work is a :class:`Node`. What it leaves is in the store under its digest, so a run that was killed goes on
where it was: what is there is not done again. Two nodes with one digest are the same work, whoever asked for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from counterpoise.config import ActorResources


@runtime_checkable
class Node(Protocol):
    """A piece of work. Can be pickled.

    Attributes:
        digest: What it is; equal digests are the same work.
        parents: What must be done before.
        num_workers: 1: it runs in one process, a Ray task's or this one. More: :meth:`run` starts that many itself
            and is called from this process, one such node at a time.
        resources: What it reserves in Ray; ``workers``: it starts only where fewer nodes than these are running.
    """

    @property
    def digest(self) -> str: ...

    @property
    def parents(self) -> Sequence[Node]: ...

    @property
    def num_workers(self) -> int: ...

    @property
    def resources(self) -> ActorResources: ...

    def done(self) -> bool:
        """Whether its result is in the store."""

    def run(self) -> None:
        """Does it. After this :meth:`done` is true; called again after a crash, it goes on where it was."""


AnyNode = TypeVar("AnyNode", bound=Node)


def needed(goals: Iterable[AnyNode]) -> dict[str, AnyNode]:
    """What is to be done for the goals to be done, by digest, parents first."""
    order: dict[str, AnyNode] = {}
    looked_at: set[str] = set()

    def visit(node: AnyNode) -> None:
        if node.digest in looked_at:
            return
        looked_at.add(node.digest)
        if node.done():
            return
        for parent in node.parents:
            visit(parent)  # type: ignore[arg-type]  # parents are nodes of the same kinds
        order[node.digest] = node

    for goal in goals:
        visit(goal)
    return order


def run(nodes: Mapping[str, AnyNode]) -> Iterator[AnyNode]:
    """Do the nodes, each after its parents, and yield each one that is done.

    As Ray tasks on a cluster that this process joins, whose head may be small. Without one they run in this process if
    never two of them could run at once: a small job must not wait for Ray's start. A node that fails ends the others,
    and its exception is raised as it was.

    Args:
        nodes: From :func:`needed`.
    """
    if not _joins_a_cluster() and _one_by_one(nodes):
        for node in nodes.values():
            node.run()
            yield node
    else:
        yield from _on_cluster(dict(nodes))


def run_all(goals: Iterable[AnyNode]) -> None:
    """Do what the goals need, if anything; see :func:`run`."""
    for _ in run(needed(goals)):
        pass


def _joins_a_cluster() -> bool:
    """Return whether work goes to a cluster that is there already: the driver may then be on a small head node."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def _ready(left: Mapping[str, AnyNode]) -> list[AnyNode]:
    return [node for node in left.values() if all(parent.digest not in left for parent in node.parents)]


def _one_by_one(nodes: Mapping[str, AnyNode]) -> bool:
    """Whether the nodes are a chain, each waiting for the one before."""
    left = dict(nodes)
    while left:
        first, *others = _ready(left)
        if others:
            return False
        del left[first.digest]
    return True


def _on_cluster(left: dict[str, AnyNode]) -> Iterator[AnyNode]:
    """Ready nodes are Ray tasks; Ray runs as many as there is room for. Those of several workers run from here."""
    import ray

    from counterpoise.execution.cluster import connect

    connect()
    work: Any = ray.remote(max_retries=2)(_work)
    running: dict[ray.ObjectRef, AnyNode] = {}
    try:
        while left:
            started = {node.digest for node in running.values()}
            ready = [node for node in _ready(left) if node.digest not in started]
            for node in ready:
                needs = node.resources
                if node.num_workers == 1 and len(running) < (needs.workers or len(left)):
                    reference = work.options(num_cpus=needs.num_cpus, num_gpus=needs.num_gpus).remote(node)
                    running[reference] = node
            large = next((node for node in ready if node.num_workers > 1), None)
            if large is not None:
                large.run()
                yield left.pop(large.digest)
                continue
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            ray.get(reference)
            yield left.pop(running.pop(reference).digest)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _work(node: Node) -> None:
    node.run()
