"""Ends deadlocks over several shards: asks all shards who waits for whom, and ends a victim's wait.

What is one is decided in `shardb.txn.deadlock`. Only one coordinator of a cluster does this, the
lead; it need not know the transactions, for their ids say all that is needed, and a victim's error
comes to its own coordinator as the answer to its statement.

One question a shard is under way all the time, answered when there is news.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from shardb import limits
from shardb.errors import SqlError
from shardb.rpc import messages as m
from shardb.rpc.transport import Client
from shardb.txn.deadlock import Detector, Victim

AWAY_PAUSE_S: Final = 0.25  # before a shard that is away is asked again


class Loop(Protocol):
    """What is needed of the event loop."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> object: ...


class DeadlockWatch:
    """`nodes` lists the ids of the shards there are, `client` gives the connection to one."""

    def __init__(
        self, loop: Loop, nodes: Callable[[], Iterable[int]], client: Callable[[int], Client]
    ) -> None:
        self._loop = loop
        self._nodes = nodes
        self._client = client
        self._detector = Detector()
        self._asked: set[int] = set()  # nodes with a question under way, or about to be
        self._stopped = False

    def start(self) -> None:
        """Asks every shard, also those that come later, until `stop`."""
        if self._stopped:
            return
        for node_id in self._nodes():
            if node_id not in self._asked:
                self._asked.add(node_id)
                self._ask(node_id, 0)
        self._loop.call_later(AWAY_PAUSE_S, self.start)

    def stop(self) -> None:
        """Asks no more."""
        self._stopped = True

    def _ask(self, node_id: int, known: int) -> None:
        if self._stopped:
            return
        asked = self._detector.asking()

        def answered(reply: m.Message) -> None:
            if not isinstance(reply, m.WaitReport):
                self._away(node_id)
                return
            self._take(node_id, asked, reply)
            pause_s = limits.WAIT_REPORTS_PAUSE_MS / 1000
            self._loop.call_later(pause_s, lambda: self._ask(node_id, reply.number))

        self._send(node_id, m.WatchWaits(known), answered, lambda: self._away(node_id))

    def _ask_again(self, node_id: int) -> None:
        """For a report of now, beside the question that is under way."""
        asked = self._detector.asking()

        def answered(reply: m.Message) -> None:
            if isinstance(reply, m.WaitReport):
                self._take(node_id, asked, reply)

        self._send(node_id, m.WatchWaits(0), answered, lambda: None)

    def _take(self, node_id: int, asked: int, report: m.WaitReport) -> None:
        found = self._detector.report(node_id, asked, report.edges)
        for again in sorted(found.ask):
            self._ask_again(again)
        for victim in found.victims:
            self._end(victim)

    def _end(self, victim: Victim) -> None:
        message = m.BreakWait(victim.place.wait, victim.detail)
        self._send(victim.place.node_id, message, lambda _: None, lambda: None)

    def _send(
        self,
        node_id: int,
        message: m.Message,
        answered: Callable[[m.Message], None],
        away: Callable[[], None],
    ) -> None:
        try:
            client = self._client(node_id)
        except SqlError:
            away()
            return
        if client.connected:
            client.call(message, answered)
        else:
            away()

    def _away(self, node_id: int) -> None:
        """No answer: its waits went with it. It is asked again when it is there."""
        self._detector.forget(node_id)
        self._loop.call_later(AWAY_PAUSE_S, lambda: self._asked.discard(node_id))
