"""One write by key on its way to one range: its time limits, its cancellation, what an error means.

A write that waits for a lock can be cancelled; what it answers then is still waited for, as the
transaction may have state on the range because of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from coordinator.gate import lock_timed_out
from coordinator.rowcall import CANCELED, Txn, as_error, ignore
from coordinator.writes import WriteResult
from shardb.errors import SqlError
from shardb.meta.descriptors import Range
from shardb.rpc import messages as m
from shardb.rpc.transport import LOST, Client, failure_error

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from coordinator.txn_driver import TxnDriver

_NOBODY = m.TxnRef(b"", 0, 0, 0)


def write_message(
    table_id: int,
    mode: str,
    count: int,
    expected_ts: tuple[int, ...] = (),
    lock: int = 0,
    nowait: int = 0,
) -> m.Write:
    """What is to be written, without whose and where: see messages.Write."""
    return m.Write(
        0, table_id, 0, 0, 0, _NOBODY, False, mode, count, b"", b"", expected_ts, lock, nowait
    )


async def write_range(
    driver: TxnDriver,
    txn: Txn,
    item: Range,
    statement: int,
    message: m.Write,
    keys: Buffer,
    rows: Buffer,
    members: list[int] | None,
) -> WriteResult:
    """Sends a write, as a statement, to a range; `members` are its rows' numbers among all."""
    client = await driver.wait_for(item)
    part = txn.parts.get(item.id)
    state_id = part.state_id if part is not None else 0
    if part is None:
        txn.entering[item.id] = item
    issued = driver.oracle.issue()
    message = msgspec.structs.replace(
        message,
        range_id=item.id,
        read_ts=driver.read_ts_of(txn),
        floor=max(driver.newest_seen, txn.floor),
        known_issued=issued,
        txn=m.TxnRef(txn.txn_id, state_id, statement, issued),
    )
    done: asyncio.Future[m.Message] = driver.loop.create_future()
    client.call_write(
        message, keys, rows, lambda reply: None if done.done() else done.set_result(reply)
    )
    cancel = m.CancelStatement(item.id, txn.txn_id, statement)
    cancelled: BaseException | None = None
    try:
        reply = await _unlocked(done, client, cancel, txn.lock_timeout_s)
    except asyncio.CancelledError as error:
        cancelled = error
        client.call(cancel, ignore)
        reply = await done  # at once, for a wait ends now: what it says may be needed
    if isinstance(reply, m.Written):
        driver.joined(txn, item, reply.state_id, statement=statement)
        driver.saw(reply.newest_ts)
        txn.floor = max(txn.floor, reply.newest_ts)
        if cancelled is not None:
            raise cancelled
        skipped = reply.skipped
        if members is not None:
            skipped = tuple(members[i] for i in skipped)
        return WriteResult(reply.count, skipped)
    assert isinstance(reply, m.Failure), reply
    txn.entering.pop(item.id, None)
    lost = reply is LOST or reply.aborted
    if lost:
        txn.doomed = True
    if cancelled is not None:
        raise cancelled
    if lost:
        raise SqlError("40001", "a shard lost the transaction")
    if reply.state_id:
        driver.joined(txn, item, reply.state_id, failed=True)
    if reply.sqlstate == CANCELED:
        raise lock_timed_out()  # nothing else cancels it while this waits
    raise as_error(failure_error(reply))


async def _unlocked(
    done: asyncio.Future[m.Message],
    client: Client,
    cancel: m.CancelStatement,
    lock_timeout_s: float,
) -> m.Message:
    """The answer to a write; time and again what waits for a lock is cancelled."""
    while lock_timeout_s and not done.done():
        await asyncio.wait((done,), timeout=lock_timeout_s)
        if not done.done():
            client.call(cancel, ignore)
    return await asyncio.shield(done)
