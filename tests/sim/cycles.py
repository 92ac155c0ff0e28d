"""Cycles among transactions that append to lists, after Elle (Kingsbury and Alvaro, 2020).

Every element is appended once, so that the longest list read of a key is the order of its versions,
and a read says which version it saw. From this follows what must have come before what:

- a transaction's commit point comes after its other points; REPEATABLE READ and SERIALIZABLE have
  one other point, their snapshot; READ COMMITTED has one for each statement;
- wr: whoever wrote a version commits before the point that reads it;
- ww: it commits before the point of whoever writes the next one;
- rw: a point that reads a version comes before the commit of whoever writes the next one; between
  two SERIALIZABLE transactions the reader's commit does;
- rt: a transaction that has ended commits before any point of one that begins later.

A cycle in this graph is an anomaly that no level concerned allows: without rw edges G0 or G1c, with
them G-single, a lost update, or a stale read; and among SERIALIZABLE transactions write skew (G2)
too. Aborted reads (G1a), intermediate reads (G1b) and lost elements show without a graph.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from tests.sim.history import OK, UNKNOWN, Operation

SERIALIZABLE: Final = "SERIALIZABLE"
READ_COMMITTED: Final = "READ COMMITTED"
Elements = tuple[int, ...]


@dataclass
class Append:
    key: int
    element: int

    def __str__(self) -> str:
        return f"append {self.element} to {self.key}"


@dataclass
class Read:
    """What a statement saw: lists by key."""

    lists: dict[int, Elements]

    def __str__(self) -> str:
        return "read " + ", ".join(
            f"{key}: ..{list(found[-3:])}" for key, found in self.lists.items()
        )


@dataclass
class Transaction:
    """One that has committed, or may have. `points` has a node for each of its statements."""

    operation: Operation
    level: str
    steps: list[Append | Read]
    commit: int = -1
    points: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        steps = "; ".join(map(str, self.steps))
        begun, ended = self.operation.begun_ns / 1e9, self.operation.ended_ns / 1e9
        who = f"client {self.operation.client} {begun:.6f}..{ended:.6f}"
        return f"{self.level}, {self.operation.outcome}, {who}: {steps}"


class Graph:
    """Nodes are numbers; each edge has a reason."""

    def __init__(self) -> None:
        self.edges: list[dict[int, str]] = []
        self.owner: list[Transaction | None] = []

    def node(self, owner: Transaction | None) -> int:
        self.edges.append({})
        self.owner.append(owner)
        return len(self.edges) - 1

    def edge(self, source: int, target: int, why: str) -> None:
        if source != target:
            self.edges[source].setdefault(target, why)

    def shortest_cycle(self) -> list[int] | None:
        """A cycle with as few edges as there is, of those through nodes that are on any."""
        left = self._cyclic()
        best: list[int] | None = None
        for start in sorted(left)[:200]:
            found = self._cycle_through(start, left, len(best) if best else None)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best

    def _cyclic(self) -> set[int]:
        """The nodes that are left when those without a way in, or out, are taken away."""
        left = set(range(len(self.edges)))
        reverse: list[list[int]] = [[] for _ in self.edges]
        for source, targets in enumerate(self.edges):
            for target in targets:
                reverse[target].append(source)
        for forward, backward in ((self.edges, reverse), (reverse, self.edges)):
            count = [sum(other in left for other in backward[node]) for node in range(len(reverse))]
            ready = deque(node for node in left if not count[node])
            while ready:
                node = ready.popleft()
                left.discard(node)
                for target in forward[node]:
                    if target in left:
                        count[target] -= 1
                        if not count[target]:
                            ready.append(target)
        return left

    def _cycle_through(self, start: int, left: set[int], below: int | None) -> list[int] | None:
        before = {start: start}
        depth = {start: 1}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if below is not None and depth[node] >= below:
                return None
            for target in self.edges[node]:
                if target == start:
                    path = [node]
                    while path[-1] != start:
                        path.append(before[path[-1]])
                    return path[::-1]
                if target in left and target not in before:
                    before[target] = node
                    depth[target] = depth[node] + 1
                    queue.append(target)
        return None

    def explain(self, cycle: list[int]) -> str:
        """The cycle's transactions, and why one comes before the next."""
        lines = ["a cycle:"]
        for source, target in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            owner = self.owner[source]
            if owner is not None:
                lines.append(f"  {owner}")
            lines.append(f"    {self.edges[source][target]}")
        return "\n".join(lines)


def find_anomalies(transactions: list[Transaction], final: dict[int, Elements]) -> list[str]:
    """All that contradicts the levels. `final` is what the lists are in the end.

    Transactions that certainly failed are needed too: what they appended must not be seen.
    """
    found: list[str] = []
    writer = {
        step.element: txn for txn in transactions for step in txn.steps if isinstance(step, Append)
    }
    committed = [txn for txn in transactions if txn.operation.outcome == OK]
    found += _check_final(transactions, final, writer)
    for txn in committed:
        for step in txn.steps:
            if isinstance(step, Read):
                for key, seen in step.lists.items():
                    if seen != final[key][: len(seen)] and not _own_tail(txn, key, seen, final):
                        found.append(f"{list(seen[-4:])} of key {key} is no prefix: {txn}")
                    found += _check_read(txn, key, seen, writer)
    if found:
        return found  # the order of versions cannot be trusted
    graph = Graph()
    positions = {el: (key, at) for key, row in final.items() for at, el in enumerate(row)}
    seen_to_commit = [
        txn
        for txn in transactions
        if txn.operation.outcome == OK
        or (
            txn.operation.outcome == UNKNOWN
            and any(isinstance(s, Append) and s.element in positions for s in txn.steps)
        )
    ]
    _add_points(graph, seen_to_commit)
    for txn in seen_to_commit:
        for index, step in enumerate(txn.steps):
            if isinstance(step, Append):
                _add_append(graph, txn, index, step, final, positions, writer)
            elif txn.operation.outcome == OK:
                for key, seen in step.lists.items():
                    _add_read(graph, txn, index, key, seen, final, writer)
    _add_real_time(graph, seen_to_commit)
    cycle = graph.shortest_cycle()
    if cycle is not None:
        found.append(graph.explain(cycle))
    return found


def _own_tail(txn: Transaction, key: int, seen: Elements, final: dict[int, Elements]) -> bool:
    """True if only the transaction's own elements, in their places later, end what it saw."""
    own = {s.element for s in txn.steps if isinstance(s, Append) and s.key == key}
    base = [element for element in seen if element not in own]
    tail = list(seen[len(base) :])
    return base == list(final[key][: len(base)]) and all(element in own for element in tail)


def _check_final(
    transactions: list[Transaction], final: dict[int, Elements], writer: dict[int, Transaction]
) -> Iterable[str]:
    for key, row in final.items():
        if len(set(row)) != len(row):
            yield f"key {key} has an element twice: {row}"
        for element in row:
            if element not in writer:
                yield f"key {key} has {element}, which nobody appended"
            elif writer[element].operation.outcome not in (OK, UNKNOWN):
                yield f"key {key} has {element} of a failed transaction: {writer[element]}"
    for txn in transactions:
        appends = [step for step in txn.steps if isinstance(step, Append)]
        there = [step.element in final[step.key] for step in appends]
        if txn.operation.outcome == OK and not all(there):
            yield f"an acknowledged append is lost: {txn}"
        if txn.operation.outcome == UNKNOWN and any(there) and not all(there):
            yield f"half of a transaction took effect: {txn}"


def _check_read(
    txn: Transaction, key: int, seen: Elements, writer: dict[int, Transaction]
) -> Iterable[str]:
    for element in seen:
        source = writer.get(element)
        if source is None:
            yield f"{element} was read, which nobody appended: {txn}"
        elif source.operation.outcome not in (OK, UNKNOWN):
            yield f"{txn} read {element} of a failed transaction: {source}"
    if seen and (source := writer.get(seen[-1])) not in (None, txn):
        assert source is not None
        last = [s.element for s in source.steps if isinstance(s, Append) and s.key == key][-1]
        if seen[-1] != last:
            yield f"{txn} read {seen[-1]} before {last} of the same transaction: {source}"


def _add_points(graph: Graph, transactions: list[Transaction]) -> None:
    for txn in transactions:
        txn.commit = graph.node(txn)
        if txn.level == READ_COMMITTED:
            txn.points = [graph.node(txn) for _ in txn.steps]
            for before, after in zip(txn.points, txn.points[1:], strict=False):
                graph.edge(before, after, "has a later statement")
        else:
            txn.points = [graph.node(txn)] * len(txn.steps)
        for point in txn.points[-1:]:
            graph.edge(point, txn.commit, "commits")


def _add_append(
    graph: Graph,
    txn: Transaction,
    index: int,
    step: Append,
    final: dict[int, Elements],
    positions: dict[int, tuple[int, int]],
    writer: dict[int, Transaction],
) -> None:
    if step.element not in positions:
        return
    key, at = positions[step.element]
    if at:
        before = final[key][at - 1]
        if writer[before] is not txn:
            why = f"appended {before} to {key}, after which {step.element} follows (ww)"
            graph.edge(writer[before].commit, txn.points[index], why)


def _add_read(
    graph: Graph,
    txn: Transaction,
    index: int,
    key: int,
    seen: Elements,
    final: dict[int, Elements],
    writer: dict[int, Transaction],
) -> None:
    foreign = [element for element in seen if writer[element] is not txn]
    if foreign:
        last = foreign[-1]
        why = f"appended {last} to {key}, which is read (wr)"
        graph.edge(writer[last].commit, txn.points[index], why)
    at = len(foreign)
    row = final[key]
    if at < len(row) and writer[row[at]] is not txn and len(foreign) == len(seen):
        after = writer[row[at]]
        both = txn.level == after.level == SERIALIZABLE
        why = f"did not see {row[at]} in {key}, which is appended (rw)"
        graph.edge(txn.commit if both else txn.points[index], after.commit, why)


def _add_real_time(graph: Graph, transactions: list[Transaction]) -> None:
    events: list[tuple[int, int, int]] = []
    for number, txn in enumerate(transactions):
        events.append((txn.operation.begun_ns, 1, number))
        if txn.operation.outcome == OK:
            events.append((txn.operation.ended_ns, 0, number))
    barrier = -1
    for _, begins, number in sorted(events):
        txn = transactions[number]
        if begins:
            if barrier >= 0 and txn.points:
                graph.edge(barrier, txn.points[0], "before this begins (rt)")
        else:
            later = graph.node(None)
            if barrier >= 0:
                graph.edge(barrier, later, "later")
            graph.edge(txn.commit, later, "ended (rt)")
            barrier = later
