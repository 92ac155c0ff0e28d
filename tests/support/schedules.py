"""Schedules of statements in several sessions, carried out in order, with what each gave or when.

A session carries out its statements one after another in a thread. After each step of the schedule
there is a moment for it to end; one that has not is noted as waiting, and what became of it after
the step that let it go on.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.support.server import Server

SETTLE_S = 0.3  # a statement that has not ended by then waits for another session
PATIENT_S = 2.0  # the same on a busy machine, where what is slow looks as if it waited
END_S = 20.0


@dataclass(frozen=True)
class Step:
    """One statement of a session."""

    session: str
    sql: str


class Session:
    """A connection with a thread that carries out its statements."""

    def __init__(self, server: Server) -> None:
        self.connection = server.connect()
        self._work: queue.Queue[tuple[str, queue.Queue[object]] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def begin(self, sql: str) -> queue.Queue[object]:
        """Has the thread run a statement; the queue gets what it gave."""
        result: queue.Queue[object] = queue.Queue()
        self._work.put((sql, result))
        return result

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(END_S)
        self.connection.close()

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            sql, result = item
            result.put(self._execute(sql))

    def _execute(self, sql: str) -> object:
        try:
            cursor = self.connection.execute(sql)  # type: ignore[call-overload]
            if cursor.description is not None:
                return sorted(cursor.fetchall())
            return cursor.statusmessage
        except psycopg.Error as error:
            return error.sqlstate, error.diag.message_primary


def carry_out(
    server: Server, steps: Sequence[Step], settle_s: float = SETTLE_S
) -> list[tuple[Any, ...]]:
    """What each step gave: (session, sql, result), or "waits" and the result where it came."""
    sessions: dict[str, Session] = {}
    waiting: list[tuple[Step, queue.Queue[object]]] = []
    trace: list[tuple[Any, ...]] = []
    try:
        for step in steps:
            session = sessions.get(step.session)
            if session is None:
                session = sessions[step.session] = Session(server)
            waiting.append((step, session.begin(step.sql)))
            left = []
            # The step itself first: what it let go on ends after it.
            for number, (of, result) in enumerate([waiting[-1], *waiting[:-1]]):
                try:
                    trace.append((of.session, of.sql, result.get(timeout=settle_s)))
                except queue.Empty:
                    if number == 0:
                        trace.append((of.session, of.sql, "waits"))
                    left.append((of, result))
            waiting = left
        for of, result in waiting:
            trace.append((of.session, of.sql, result.get(timeout=END_S)))
    finally:
        for session in sessions.values():
            session.close()
    return trace


def steps_of(text: str) -> list[Step]:
    """The steps of lines `session: statement`."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return [Step(*(part.strip() for part in line.split(":", 1))) for line in lines]
