"""Waits, failures and cancellations: nobody waits for ever, nothing is held or lost by accident."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from coordinator.catalog import Catalog
from coordinator.isolation import SERIALIZABLE
from coordinator.plan.plans import ScanStage
from shardb import limits
from shardb._core.frames import join_items
from shardb.errors import SqlError, StorageError
from shardb.node.ranges import LocalRange
from shardb.program import Key, ProgramSpec
from tests.support.shards import (
    ADD,
    ADD_TO_ALL,
    BALANCE,
    COUNT_FROM,
    FIRST,
    ID,
    INSERT,
    INT4,
    SECOND,
    SELECT_FROM,
    TABLE,
    Cluster,
    fields,
    with_cluster,
)

STAGE = ScanStage("t", TABLE.id, (0, 1), b"", b"", "", with_key=True)
LOCK_FROM = ProgramSpec(
    TABLE.id,
    1,
    "select",
    (INT4, INT4),
    Key(low=FIRST, high=SECOND),
    output=(ID, BALANCE),
    locking="update",
)


def slow_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records become durable later, so that there is always one in flight."""
    persist = LocalRange.persist
    delays = itertools.cycle((0.011, 0.023, 0.017, 0.031))

    def slowly(self: LocalRange, kind: int, payload: bytes, done: Any, lazy: bool = False) -> None:
        loop = asyncio.get_running_loop()

        def durable(error: StorageError | None) -> None:
            loop.call_later(next(delays), done, error)

        persist(self, kind, payload, durable, lazy)

    monkeypatch.setattr(LocalRange, "persist", slowly)


def nothing_is_left(c: Cluster) -> None:
    for server in c.servers.values():
        assert len(server.node.locks) == 0
        for local in server.node.ranges.values():
            assert not local.participant.states and not local.participant.prepared


@pytest.mark.parametrize("spec", [SELECT_FROM, ADD_TO_ALL, LOCK_FROM], ids=lambda s: s.kind)
def test_a_stream_of_commits_keeps_no_interval_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: ProgramSpec
) -> None:
    async def test(c: Cluster) -> None:
        for ident in range(8):
            await c.run(INSERT, ident, 0)
        slow_log(monkeypatch)
        stop = False

        async def add(ident: int) -> None:
            await asyncio.sleep(0.003 * ident)
            while not stop:
                await c.run(ADD, ident, 1)

        load = [asyncio.create_task(add(ident)) for ident in range(1, 8)]
        await asyncio.sleep(0.1)
        try:
            if spec is SELECT_FROM:
                await asyncio.wait_for(c.run(spec, 0, 50), 2)
            elif spec is LOCK_FROM:
                txn = c.driver.begin()
                await asyncio.wait_for(c.run(spec, 0, 50, txn=txn), 2)
                await c.driver.rollback(txn)
            else:
                await asyncio.wait_for(c.run(spec, 1), 2)
        finally:
            stop = True
            await asyncio.gather(*load)

    with_cluster(tmp_path, test, shards=1)


def test_rows_that_come_to_match_are_locked_too(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        holder, txn = c.driver.begin(), c.driver.begin()
        await c.run(ADD, 1, 1, txn=holder)
        locking = asyncio.create_task(c.run(LOCK_FROM, 0, 50, txn=txn))
        await asyncio.sleep(0.02)
        await c.run(INSERT, 2, 0)
        await c.driver.commit(holder)
        rows = [row[0] for row in fields((await locking).data)]
        other = asyncio.create_task(c.run(ADD, 2, 5))
        await asyncio.sleep(0.02)
        assert other.done() == (b"2" not in rows)
        await c.driver.commit(txn)
        await other

    with_cluster(tmp_path, test)


def test_a_failed_statement_after_a_savepoint_loses_nothing(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 2, 0)
        txn = c.driver.begin()
        mark = c.driver.mark(txn)
        await c.run(ADD, 1, 1, txn=txn)
        await c.driver.rollback_to(txn, mark)
        with pytest.raises(SqlError) as caught:
            await c.run(INSERT, 2, 0, txn=txn)
        assert caught.value.sqlstate == "23505"
        await c.driver.rollback_to(txn, mark)
        await c.run(ADD, 1, 10, txn=txn)
        await c.driver.commit(txn)
        assert await c.balance(1) == 10

    with_cluster(tmp_path, test)


def test_a_dropped_table_stops_nobody_but_its_readers(tmp_path: Path) -> None:
    """They waited for a prepared transaction: its other waiters and locks must not be lost."""

    async def test(c: Cluster) -> None:
        from coordinator.commit import TwoPhaseRun

        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        txn = c.driver.begin()
        await c.run(ADD, 1, 1, txn=txn)
        await c.run(ADD, 150, 1, txn=txn)
        tell, told = TwoPhaseRun._tell, []
        TwoPhaseRun._tell = lambda *a: told.append(a)
        try:
            await c.driver.commit(txn)
        finally:
            TwoPhaseRun._tell = tell
        waiting = [
            asyncio.create_task(c.driver.run_scan(None, STAGE)),
            asyncio.create_task(c.run(SELECT_FROM, 0, 50)),
            asyncio.create_task(c.run(ADD, 1, 1)),
        ]
        await asyncio.sleep(0.05)
        await c.driver.drop_table(TABLE, c.ranges)
        for arguments in told:
            tell(*arguments)
        ended = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 15)
        assert all(isinstance(error, SqlError) for error in ended), ended
        nothing_is_left(c)

    with_cluster(tmp_path, test)


def test_a_shard_met_without_timestamps_serves_once_there_are_some(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        issue = c.oracle.issue

        def away() -> int:
            raise SqlError("57P03", "no timestamps: the metadata store cannot be reached")

        c.oracle.issue = away  # type: ignore[method-assign]
        await c.stop_node(1)
        await c.start_node(1)
        await asyncio.sleep(0.3)
        c.oracle.issue = issue  # type: ignore[method-assign]
        assert await c.balance(1) == 0
        await c.run(ADD, 1, 1)

    with_cluster(tmp_path, test)


def test_a_record_that_is_too_long_fails_its_transaction_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        with monkeypatch.context() as patch:
            patch.setattr(limits, "LOG_RECORD_MAX_BYTES", 10)
            with pytest.raises(SqlError) as caught:
                await c.run(ADD, 1, 1)
            assert caught.value.sqlstate == "54000"
            with pytest.raises(SqlError):
                await c.run(ADD_TO_ALL, 1)
        await c.run(ADD_TO_ALL, 1)
        assert [await c.balance(1), await c.balance(150)] == [1, 1]
        await asyncio.sleep(0.05)
        nothing_is_left(c)

    with_cluster(tmp_path, test)


@pytest.mark.parametrize("idents", [(1,), (1, 150)])
def test_a_commit_on_its_way_cannot_be_cancelled(tmp_path: Path, idents: tuple[int, ...]) -> None:
    """A client that is told of a cancelled COMMIT would think that it had no effect."""

    async def test(c: Cluster) -> None:
        txn = c.driver.begin()
        for ident in idents:
            await c.run(INSERT, ident, 7, txn=txn)
        commit = asyncio.create_task(c.driver.commit(txn))
        await asyncio.sleep(0)
        commit.cancel()
        await commit
        assert [await c.balance(ident) for ident in idents] == [7] * len(idents)

    with_cluster(tmp_path, test)


def test_an_update_of_very_many_rows_lets_others_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BULK_ROWS_MIN", 100)

    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 5)
        txn = c.driver.begin()
        keys, rows = c.rows([(ident, 0) for ident in range(1_000, 9_000)])
        await c.driver.write(txn, TABLE.id, "insert", keys, rows)
        await c.driver.commit(txn)
        update = asyncio.create_task(c.run(ADD_TO_ALL, 1))
        await asyncio.sleep(0)
        for _ in range(5):
            assert await c.balance(150) is None
        assert not update.done()
        await update
        assert [await c.balance(n) for n in (1, 1_000, 8_999)] == [6, 1, 1]

    with_cluster(tmp_path, test)


def test_a_commit_that_cannot_tell_what_was_read_leaves_nothing(tmp_path: Path) -> None:
    """A table that a SERIALIZABLE transaction has read was dropped before its commit."""

    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        txn = c.driver.begin(SERIALIZABLE)
        assert await c.balance(1, txn) == 0
        await c.run(ADD, 1, 1, txn=txn)
        before = c.catalog
        c.catalog = Catalog.build(2, [], [], [], before.nodes.values())
        with pytest.raises(SqlError) as caught:
            await c.driver.commit(txn)
        assert caught.value.sqlstate == "42P01"
        c.catalog = before
        await asyncio.wait_for(c.run(ADD, 1, 5), 5)
        assert await c.balance(1) == 5
        nothing_is_left(c)

    with_cluster(tmp_path, test)


def test_a_circle_of_large_inserts_is_a_deadlock(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        batches = [c.rows([(n, 0) for n in range(at, at + 600)]) for at in (1000, 2000)]
        txns = [c.driver.begin(), c.driver.begin()]

        async def insert(txn: Any, at: int) -> None:
            keys, rows = batches[at]
            await c.driver.write(txn, TABLE.id, "insert", keys, rows)

        await insert(txns[0], 0)
        await insert(txns[1], 1)
        waiting = asyncio.create_task(insert(txns[0], 1))
        await asyncio.sleep(0.05)
        with pytest.raises(SqlError) as caught:
            await asyncio.wait_for(c.run(INSERT, 1001, 0, txn=txns[1]), 5)
        assert caught.value.sqlstate == "40P01"
        with pytest.raises(SqlError) as caught:
            await asyncio.wait_for(insert(txns[1], 0), 5)
        assert caught.value.sqlstate == "40P01"
        await c.driver.rollback(txns[1])
        await asyncio.wait_for(waiting, 5)
        await c.driver.commit(txns[0])
        await asyncio.sleep(0.05)
        nothing_is_left(c)

    with_cluster(tmp_path, test)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_long_batch_lets_others_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    monkeypatch.setattr(limits, "BULK_SLICE_BYTES", 1_000)

    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 5)
        txn = c.driver.begin()
        keys, rows = c.rows([(ident, 0) for ident in range(1_000, 9_000)])
        insert = asyncio.create_task(c.driver.write(txn, TABLE.id, "insert", keys, rows))
        await asyncio.sleep(0)
        for _ in range(5):
            await c.run(ADD, 200, 1)
            assert await c.balance(1) == 5
        assert not insert.done()
        if cancelled:
            insert.cancel()
            with pytest.raises(asyncio.CancelledError):
                await insert
            await c.driver.rollback(txn)
            await c.run(INSERT, 1_000, 7)
            await asyncio.sleep(0.05)
            nothing_is_left(c)
        else:
            await insert
            await c.driver.commit(txn)
        assert [await c.balance(n) for n in (1_000, 8_999)] == ([7, None] if cancelled else [0, 0])

    with_cluster(tmp_path, test)


@pytest.mark.parametrize("cancelled", [False, True])
def test_batches_of_one_insert_take_their_turns(tmp_path: Path, cancelled: bool) -> None:
    async def test(c: Cluster) -> None:
        def batch(first: int) -> tuple[int, bytes, bytes]:
            keys, rows = c.rows([(ident, 0) for ident in range(first, first + 600)])
            return 600, join_items(keys), join_items(rows)

        def put(first: int) -> asyncio.Task[None]:
            item = c.catalog.find_range(TABLE.group_id, c.rows([(first, 0)])[0][0])
            return asyncio.create_task(c.driver.write_dealt(txn, TABLE.id, item, *batch(first)))

        other, txn = c.driver.begin(), c.driver.begin()
        await c.run(INSERT, 3000, 0, txn=other)
        await put(1000)
        first, second, third = put(2500), put(4000), put(5000)
        await asyncio.sleep(0.05)
        assert not (first.done() or second.done() or third.done())
        if cancelled:
            for task in (first, second, third):
                task.cancel()
            await asyncio.wait((first, second, third), timeout=5)
            assert first.cancelled()
            await c.driver.rollback(txn)
            await c.driver.commit(other)
        else:
            await c.driver.rollback(other)
            await asyncio.wait_for(asyncio.gather(first, second, third), 5)
            await c.driver.commit(txn)
        await asyncio.sleep(0.05)
        count = fields((await c.run(COUNT_FROM, 1000, 9999)).data)
        assert count == [[b"1" if cancelled else b"2400"]]
        nothing_is_left(c)

    with_cluster(tmp_path, test)


def test_a_cancelled_statement_leaves_its_transaction_whole(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        for ident in (1, 2, 3, 150):
            await c.run(INSERT, ident, 0)
        holder, txn = c.driver.begin(), c.driver.begin()
        await c.run(ADD, 1, 1, txn=holder)
        await c.run(ADD, 2, 1, txn=txn)
        mark = c.driver.mark(txn)
        for spec, values in ((ADD, (1, 1)), (ADD_TO_ALL, (1,))):
            plan, program = c.plan(spec)
            done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            params = program.param_layout.encode(values)
            call = c.driver.execute_row(txn, plan, program, params, b"", done.set_result)
            await asyncio.sleep(0.05)
            assert not done.done()
            call.cancel(SqlError("57014", "canceled"))
            error = await asyncio.wait_for(done, 5)
            assert isinstance(error, SqlError) and error.sqlstate == "57014"
            await c.driver.rollback_to(txn, mark)
        await c.run(ADD, 3, 1, txn=txn)
        await c.driver.commit(txn)
        await c.driver.commit(holder)
        assert [await c.balance(ident) for ident in (1, 2, 3, 150)] == [1, 1, 1, 0]
        await asyncio.sleep(0.05)
        nothing_is_left(c)

    with_cluster(tmp_path, test)


def test_a_statement_that_runs_again_keeps_its_locks(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        idents = [1, 2, 150]
        for ident in idents:
            await c.run(INSERT, ident, 0)
        txn = c.driver.begin()
        mark = c.driver.mark(txn)
        for attempt in range(2):
            read = await c.driver.run_scan(txn, STAGE)
            if attempt == 0:
                await c.run(ADD_TO_ALL, 1)
                others = []
            pairs = zip(idents, read["c1"].to_pylist(), strict=True)
            keys, rows = c.rows([(ident, n + 10) for ident, n in pairs])
            try:
                await c.driver.write(txn, TABLE.id, "update", keys, rows, read["_ts"].to_pylist())
            except SqlError as error:
                assert attempt == 0 and error.message == "row changed"
                await c.driver.rollback_to(txn, mark)
                others = [asyncio.create_task(c.run(ADD, ident, 100)) for ident in idents]
                await asyncio.sleep(0.02)
                assert not any(task.done() for task in others)
        await c.driver.commit(txn)
        await asyncio.gather(*others)
        assert [await c.balance(ident) for ident in idents] == [111] * 3
        await asyncio.sleep(0.05)
        nothing_is_left(c)

    with_cluster(tmp_path, test)


def test_a_callback_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    from shardb.env import SystemFiles, SystemRng
    from shardb.storage.log import Log

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        log = Log(str(tmp_path / "log"), SystemFiles(loop), SystemRng(), lambda error: None)
        log.recover(lambda record: None)
        told: list[int] = []

        def fails(error: StorageError | None) -> None:
            raise RuntimeError("a bug")

        log.append(1, 1, 1, 1, b"x", lambda _: None)
        log.append(1, 1, 2, 1, b"x", fails)
        log.append(1, 1, 3, 1, b"x", lambda _: told.append(3))
        for _ in range(100):
            await asyncio.sleep(0.01)
            if told:
                break
        assert told == [3]
        log.close()

    asyncio.run(main())
