"""Execution of a directed acyclic graph of content-addressed nodes, in this process or as Ray tasks.

Each node runs once, after its parents, in parallel as far as resources allow. Its result is in the store under its
digest, so a run that was killed resumes: finished nodes are not run again. Two nodes with one digest are the same
work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from counterpoise.config import ActorResources
from counterpoise.core.progress import Progress


@runtime_checkable
class Node(Protocol):
    """Unit of work in the graph. It can be pickled."""

    @property
    def digest(self) -> str:
        """Identity of the work; equal digests are the same work."""

    @property
    def parents(self) -> Sequence[Node]:
        """Nodes that must be done before this one."""

    @property
    def num_workers(self) -> int:
        """Processes that the node needs.

        1: it runs in one process, a Ray task's or this one. More: :meth:`run` starts that many itself and is called
        from this process, one such node at a time.
        """

    @property
    def resources(self) -> ActorResources:
        """Resources reserved in Ray; ``workers``: the node starts only while fewer nodes than these are running."""

    def note(self) -> str:
        """Return the name of the finished work, for progress bars.

        A method, as Python 3.11 evaluates an object's properties when it checks the object against a protocol.
        """

    def done(self) -> bool:
        """Return True if the result is in the store."""

    def run(self) -> None:
        """Do the work. Afterwards :meth:`done` is true; called again after a crash, it resumes."""


AnyNode = TypeVar("AnyNode", bound=Node)


def needed(goals: Iterable[AnyNode]) -> dict[str, AnyNode]:
    """Return the nodes that remain to be run for the goals, by digest, parents first."""
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
    """Run the nodes, each after its parents, and yield each node when it is done.

    On a cluster that this process joins, whose head may be small, nodes run as Ray tasks. Without one, a chain, in
    which no two nodes could run at once, runs in this process: a small job must not wait for Ray's start. A failing
    node cancels the others, and its exception is raised unchanged.

    Args:
        nodes: From :func:`needed`.
    """
    if not joins_a_cluster() and _is_chain(nodes):
        for node in nodes.values():
            node.run()
            yield node
    else:
        yield from _on_cluster(dict(nodes))


def run_all(goals: Iterable[AnyNode]) -> None:
    """Run the nodes that the goals need, if any; see :func:`run`.

    Nodes in this process show their own progress. On a cluster, finished nodes are counted on standard error.
    """
    pending = needed(goals)
    if not joins_a_cluster():
        for _ in run(pending):
            pass
        return
    with Progress("on the cluster", len(pending), "tasks") as progress:
        for node in run(pending):
            progress.advance(note=node.note())


def joins_a_cluster() -> bool:
    """Return whether work goes to a cluster that is there already: the driver may then be on a small head node."""
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local")


def _ready(remaining: Mapping[str, AnyNode]) -> list[AnyNode]:
    return [node for node in remaining.values() if all(parent.digest not in remaining for parent in node.parents)]


def _is_chain(nodes: Mapping[str, AnyNode]) -> bool:
    """Return True if each node waits for the one before it."""
    remaining = dict(nodes)
    while remaining:
        first, *others = _ready(remaining)
        if others:
            return False
        del remaining[first.digest]
    return True


def _on_cluster(remaining: dict[str, AnyNode]) -> Iterator[AnyNode]:
    """Run ready nodes as Ray tasks, as many as resources allow, and nodes of several workers from this process."""
    import ray

    from counterpoise.execution.cluster import connect

    connect()
    work: Any = ray.remote(max_retries=2)(_work)
    running: dict[ray.ObjectRef, AnyNode] = {}
    try:
        while remaining:
            started = {node.digest for node in running.values()}
            ready = [node for node in _ready(remaining) if node.digest not in started]
            for node in ready:
                needs = node.resources
                if node.num_workers == 1 and len(running) < (needs.workers or len(remaining)):
                    reference = work.options(num_cpus=needs.num_cpus, num_gpus=needs.num_gpus).remote(node)
                    running[reference] = node
            large = next((node for node in ready if node.num_workers > 1), None)
            if large is not None:
                large.run()
                yield remaining.pop(large.digest)
                continue
            (reference, *_), _ = ray.wait(list(running), num_returns=1)
            ray.get(reference)
            yield remaining.pop(running.pop(reference).digest)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _work(node: Node) -> None:
    node.run()
