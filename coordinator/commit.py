"""How a transaction's commit travels: in one phase to one range, or in two to several.

What is decided is decided in `shardb.txn.coordinator`; here its effects are carried out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from coordinator.rowcall import Part, Txn, ignore, unknown_outcome
from shardb.errors import SqlError
from shardb.rpc import messages as m
from shardb.rpc.transport import failure_error
from shardb.txn import coordinator as two_phase

if TYPE_CHECKING:
    from coordinator.txn_driver import TxnDriver

ANSWER_WAIT_S: Final = 30.0  # how long a commit waits for a lost answer before it is 08007
TELL_ATTEMPTS_MAX: Final = 5
TELL_PAUSE_S: Final = 0.02

__all__ = ["TwoPhaseRun", "commit_one", "ignore"]


async def commit_one(driver: TxnDriver, txn: Txn, part: Part) -> None:
    """Commits a transaction that is on one range; errors as in TxnDriver.commit."""
    client = driver.client(part.range.primary)
    issued = driver.oracle.issue()
    message = m.CommitOne(
        part.range.id,
        m.TxnRef(txn.txn_id, part.state_id, txn.statement, issued),
        tuple(part.statements),
        max(driver.newest_seen, txn.floor),
        issued,
        txn.snapshot_ts if txn.spans is not None else 0,
        part.spans,
    )
    done: Any = driver.loop.create_future()
    client.call(message, lambda reply: None if done.done() else done.set_result(reply))
    reply = await driver.settled(done)
    if isinstance(reply, m.Committed):
        driver.saw(reply.commit_ts)
        return
    if isinstance(reply, m.Failure) and reply.aborted:
        raise failure_error(reply)
    asking = driver.loop.create_task(driver.outcome_of(part.range, txn.txn_id))
    outcome = await driver.settled(asking)
    if outcome is not None and outcome.state == "committed":
        driver.saw(outcome.ts)
    elif outcome is not None and outcome.state == "aborted":
        raise SqlError("40001", "a shard lost the transaction")
    else:
        raise unknown_outcome()


class TwoPhaseRun:
    """Carries out the effects of one two-phase commit."""

    def __init__(self, driver: TxnDriver, txn: Txn, parts: list[Part]) -> None:
        self._driver = driver
        self._txn = txn
        self._parts = parts
        self._machine = two_phase.TwoPhaseCommit(len(parts))
        self._reported: Any = driver.loop.create_future()
        self._refusal: SqlError | None = None
        self._acknowledged = 0

    async def run(self) -> None:
        """Returns once the transaction is committed; see TxnDriver.commit for errors."""
        driver, txn = self._driver, self._txn
        issued = driver.oracle.issue()
        participants = tuple(
            m.Participant(part.range.id, part.range.primary, part.range.start, part.state_id)
            for part in self._parts
        )
        for index, part in enumerate(self._parts):
            message = m.Prepare(
                part.range.id,
                m.TxnRef(txn.txn_id, part.state_id, txn.statement, issued),
                tuple(part.statements),
                participants,
                max(driver.newest_seen, txn.floor),
                issued,
                txn.snapshot_ts if txn.spans is not None else 0,
                part.spans,
            )
            client = driver.client(part.range.primary)
            client.call(message, lambda reply, index=index: self._answer(index, reply))  # type: ignore[misc]
        timer = driver.loop.call_later(
            ANSWER_WAIT_S, lambda: self._carry_out(self._machine.gave_up())
        )
        try:
            commit_ts = await driver.settled(self._reported)
        finally:
            timer.cancel()
        if commit_ts is None:
            raise unknown_outcome()
        if commit_ts == 0:
            raise self._refusal or SqlError("40001", "a shard lost the transaction")
        driver.saw(commit_ts)

    def _answer(self, index: int, reply: m.Message) -> None:
        machine = self._machine
        if isinstance(reply, m.Prepared):
            effects = machine.prepared(index, reply.min_commit_ts)
        elif isinstance(reply, m.Failure) and reply.aborted:
            self._refusal = self._refusal or failure_error(reply)
            effects = machine.refused(index)
        else:
            effects = machine.lost(index)
        self._carry_out(effects)

    def _carry_out(self, effects: list[two_phase.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, two_phase.Report):
                if not self._reported.done():
                    self._reported.set_result(effect.commit_ts)
            elif isinstance(effect, two_phase.Tell):
                self._tell(effect.participant, effect.commit_ts, 0)
            else:
                self._driver.spawn(self._ask(effect.participant))

    async def _ask(self, index: int) -> None:
        outcome = await self._driver.outcome_of(self._parts[index].range, self._txn.txn_id)
        if outcome is None:
            self._carry_out(self._machine.gave_up())
        elif outcome.state == "prepared":
            self._carry_out(self._machine.prepared(index, outcome.ts))
        elif outcome.state == "committed":
            self._carry_out(self._machine.committed(index, outcome.ts))
        elif outcome.state == "aborted":
            self._carry_out(self._machine.refused(index))

    def _tell(self, index: int, commit_ts: int, attempt: int) -> None:
        """Sends the outcome; participants that stay away find it out by themselves."""
        part = self._parts[index]
        driver = self._driver

        def told(reply: m.Message) -> None:
            if isinstance(reply, m.Ack):
                self._acknowledged += 1
                if commit_ts and self._acknowledged == len(self._parts):
                    driver.acknowledged(self._txn.txn_id, self._parts)
            elif attempt < TELL_ATTEMPTS_MAX:
                delay = TELL_PAUSE_S * 4**attempt
                driver.loop.call_later(delay, lambda: self._tell(index, commit_ts, attempt + 1))

        message = m.Decide(part.range.id, self._txn.txn_id, commit_ts)
        try:
            driver.client(part.range.primary).call(message, told)
        except SqlError:
            return
