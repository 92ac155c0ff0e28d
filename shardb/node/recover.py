"""Finishes prepared transactions whose coordinator does not come back (PROTOCOL 2, 14).

A prepared transaction whose connection is alive gets PREPARED_SILENCE_MS of patience, then the
other participants are asked without consequences; only when the connection is gone (or silent ten
times as long) does the question make unprepared participants record abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shardb import limits
from shardb.env import Clock
from shardb.errors import SqlError
from shardb.node.ranges import LocalRange
from shardb.rpc import messages as m
from shardb.rpc.transport import Client
from shardb.txn.recovery import Recovery
from shardb.txn.state import PREPARED, State

TICK_S: Final = 0.2
PATIENCE: Final = 10  # silences before a connected coordinator is taken for hung


class Resolver:
    """`prepared()` lists what is prepared on this node; `local(range_id)` gives a range of it.

    `peer(node_id)` gives a client to another shard, None if it is not known (yet).
    """

    def __init__(
        self,
        clock: Clock,
        prepared: Callable[[], list[tuple[LocalRange, State]]],
        local: Callable[[int], LocalRange | None],
        peer: Callable[[int], Client | None],
    ) -> None:
        self._clock = clock
        self._prepared = prepared
        self._local = local
        self._peer = peer
        self._seen_ms: dict[tuple[int, bytes], int] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._busy: set[tuple[int, bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to look after them."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        tasks = [task for task in (self._task, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock.monotonic_ms()
            seen_ms, self._seen_ms = self._seen_ms, {}
            for local, state in self._prepared():
                if state.phase != PREPARED:
                    continue  # its record is under way
                key = (local.id, state.txn_id)
                since = self._seen_ms[key] = seen_ms.get(key, now)
                waited = now - since
                if waited < limits.PREPARED_SILENCE_MS or key in self._busy:
                    continue
                orphaned = state.owner is None
                record = orphaned or waited > PATIENCE * limits.PREPARED_SILENCE_MS
                self._busy.add(key)
                task = asyncio.get_running_loop().create_task(self._resolve(local, state, record))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _resolve(self, local: LocalRange, state: State, record: bool) -> None:
        try:
            commit_ts = await self._ask(local, state, record)
            if commit_ts is not None and state.phase == PREPARED:
                local.participant.decide(state.txn_id, commit_ts, lambda _: None)
        finally:
            self._busy.discard((local.id, state.txn_id))

    async def _ask(self, local: LocalRange, state: State, record: bool) -> int | None:
        recovery = Recovery(len(state.participants))
        for position, participant in enumerate(state.participants):
            if participant.range_id == local.id:
                outcome: m.Message = m.Outcome("prepared", state.min_commit_ts)
            else:
                question = m.QueryOutcome(participant.range_id, state.txn_id, record)
                try:
                    outcome = await self._question(participant.node_id, question)
                except SqlError:
                    continue  # not reachable now: asked again at the next tick
            if isinstance(outcome, m.Outcome):
                decided = recovery.answer(position, outcome)
                if decided is not None:
                    return decided
        return None

    async def _question(self, node_id: int, question: m.QueryOutcome) -> m.Message:
        beside = self._local(question.range_id)
        if beside is not None:
            answer: asyncio.Future[m.Message] = asyncio.get_running_loop().create_future()
            beside.participant.query(
                question, lambda reply: None if answer.done() else answer.set_result(reply)
            )
            return await answer
        client = self._peer(node_id)
        if client is None or not await client.wait_connected(1.0):
            raise SqlError("57P03", f"shard {node_id} is not reachable")
        return await client.request(question)
