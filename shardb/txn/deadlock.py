"""Finds deadlocks in what shards report about who waits for whom.

Pure: reports come in, and out come the nodes to ask again and the waits to end. The parties are
sessions, not transactions: one session may hold advisory locks beside its transaction.

Reports of different shards are of different moments, so that a circle found in them may never have
been. It is taken for real once every shard in it has reported the same waits again, asked after
the circle was found: a wait keeps its number for as long as it lasts, and each of them lasted
from before one moment until after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from shardb.errors import SqlError
from shardb.rpc.messages import WaitEdge
from shardb.txn import advisory, ids
from shardb.txn.lockmodes import UPDATE

MESSAGE: Final = "deadlock detected"
HINT: Final = "See server log for query details."


class Place(NamedTuple):
    """A wait: the node it is on and its number there."""

    node_id: int
    wait: int


class Victim(NamedTuple):
    """A wait to end, and why: the text of 40P01's detail."""

    place: Place
    detail: str


class Found(NamedTuple):
    """`ask`: nodes that are to report again at once. `victims`: whose waits are to be ended."""

    ask: frozenset[int]
    victims: tuple[Victim, ...]


Step = tuple[int, WaitEdge]  # an edge and the node that reported it
_Circle = frozenset[tuple[int, int, bytes]]  # node, wait and blocker of each edge


def what_of(table_id: int, key: bytes, mode: int, blocker: bytes) -> str:
    """What is waited for, in PostgreSQL's words."""
    if table_id == advisory.TABLE_ID:
        return f"{'Exclusive' if mode == UPDATE else 'Share'}Lock on {advisory.describe(key)}"
    return f"ShareLock on transaction {ids.number_of(blocker)}"


def youngest(waiters: Iterable[bytes]) -> bytes:
    """Of the transactions in a circle the one that is to give way."""
    return max(waiters)  # ids begin with the begin timestamp


def detail_of(edges: Sequence[WaitEdge], victim: bytes) -> str:
    """The lines of 40P01's detail, from the victim's wait on around the circle."""
    first = next(at for at, edge in enumerate(edges) if edge.waiter == victim)
    return "\n".join(
        f"Process {ids.process_id_of(edge.waiter)} waits for {edge.what}; "
        f"blocked by process {ids.process_id_of(edge.blocker)}."
        for edge in (*edges[first:], *edges[:first])
    )


def deadlock_error(detail: str) -> SqlError:
    """40P01 as PostgreSQL words it."""
    return SqlError("40P01", MESSAGE, detail=detail, hint=HINT)


def circles(steps: Sequence[Step]) -> list[list[Step]]:
    """Circles among these edges: at least one, if there is any."""
    waits: dict[bytes, list[Step]] = {}
    for step in steps:
        session = ids.session_of(step[1].waiter)
        if session != ids.session_of(step[1].blocker):  # else an earlier one of its, in doubt
            waits.setdefault(session, []).append(step)
    found: list[list[Step]] = []
    finished: set[bytes] = set()
    for session in waits:
        _search(session, waits, finished, found)
    return found


def _search(
    start: bytes,
    waits: dict[bytes, list[Step]],
    finished: set[bytes],
    found: list[list[Step]],
) -> None:
    """Depth first from one session; a session that is finished is in no further circle."""
    path: list[Step] = []
    position = {start: 0}
    stack = [iter(waits[start])] if start not in finished else []
    sessions = [start]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
            finished.add(sessions[-1])
            del position[sessions.pop()]
            if path:
                path.pop()
            continue
        target = ids.session_of(step[1].blocker)
        if target in position:
            found.append([*path[position[target] :], step])
        elif target in waits and target not in finished:
            path.append(step)
            position[target] = len(path)
            sessions.append(target)
            stack.append(iter(waits[target]))


class Detector:
    """All reports of a cluster. `clock` counts events: what was asked when, and found when.

    Invariant: a victim is named once for each time its circle was confirmed and is gone then.
    """

    def __init__(self) -> None:
        self._clock = 0
        self._reports: dict[int, tuple[int, tuple[WaitEdge, ...]]] = {}  # asked at, edges
        self._suspected: dict[_Circle, int] = {}  # when it was found
        self._ended: dict[Place, int] = {}  # when its end was ordered

    def asking(self) -> int:
        """A node is asked for a report: the moment, for `report`."""
        self._clock += 1
        return self._clock

    def forget(self, node_id: int) -> None:
        """A node is gone, and with it all waits on it."""
        self._reports.pop(node_id, None)

    def report(self, node_id: int, asked: int, edges: tuple[WaitEdge, ...]) -> Found:
        """Who waits for whom on a node, as it answered a question of the moment `asked`.

        REQUIRES: what a node answers comes in the order in which it answered.
        """
        self._clock += 1
        known = self._reports.get(node_id)
        self._reports[node_id] = max(asked, known[0] if known is not None else 0), edges
        self._ended = {
            place: when
            for place, when in self._ended.items()
            if place.node_id != node_id or any(edge.wait == place.wait for edge in edges)
        }
        steps = [
            (node, edge)
            for node, (_, reported) in self._reports.items()
            for edge in reported
            if Place(node, edge.wait) not in self._ended
        ]
        suspected: dict[_Circle, int] = {}
        ask: set[int] = set()
        victims = []
        for circle in circles(steps):
            name = frozenset((node, edge.wait, edge.blocker) for node, edge in circle)
            since = suspected[name] = self._suspected.get(name, self._clock)
            stale = {node for node, _ in circle if self._reports[node][0] <= since}
            if stale:
                if since == self._clock:
                    ask |= stale
                continue
            del suspected[name]
            if not any(Place(node, edge.wait) in self._ended for node, edge in circle):
                victims.append(self._victim(circle))
        self._suspected = suspected
        return Found(frozenset(ask), tuple(victims))

    def _victim(self, circle: list[Step]) -> Victim:
        edges = [edge for _, edge in circle]
        victim = youngest(edge.waiter for edge in edges)
        place = next(Place(node, e.wait) for node, e in circle if e.waiter == victim)
        self._ended[place] = self._clock
        return Victim(place, detail_of(edges, victim))
