"""Statements and transactions over two shards with real sockets, files and programs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.gate import lock_timed_out
from coordinator.plan.plans import ScanStage
from shardb.errors import SqlError
from tests.support.shards import (
    ADD,
    ADD_TO_ALL,
    COUNT_FROM,
    DELETE,
    INSERT,
    INSERT_IGNORE,
    SELECT,
    SELECT_FOR_UPDATE,
    SELECT_FROM,
    TABLE,
    UPSERT,
    Cluster,
    fields,
    with_cluster,
)


def test_autocommit_point_statements(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        for ident in (1, 5, 150, 200):
            assert (await c.run(INSERT, ident, ident * 10)).rows == 1
        assert fields((await c.run(SELECT, 150)).data) == [[b"150", b"1500"]]
        assert (await c.run(ADD, 5, 7)).rows == 1
        assert await c.balance(5) == 57
        assert (await c.run(ADD, 6, 7)).rows == 0
        gone = await c.run(DELETE, 200)
        assert gone.rows == 1 and fields(gone.data) == [[b"2000"]]
        assert await c.balance(200) is None
        assert (await c.run(INSERT, 200, 1)).rows == 1
        assert (await c.run(UPSERT, 200, 5)).rows == 1
        assert await c.balance(200) == 6
        assert (await c.run(INSERT_IGNORE, 200, 9)).rows == 0

    with_cluster(tmp_path, test)


def test_duplicate_key_is_reported_as_postgres_does(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 1)
        with pytest.raises(SqlError) as caught:
            await c.run(INSERT, 1, 2)
        assert caught.value.sqlstate == "23505"
        assert caught.value.message == (
            'duplicate key value violates unique constraint "accounts_pkey"'
        )
        assert caught.value.detail == "Key (id)=(1) already exists."
        assert await c.balance(1) == 1

    with_cluster(tmp_path, test)


def test_statements_over_both_shards(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        for ident in (1, 5, 150, 200):
            await c.run(INSERT, ident, ident)
        rows = fields((await c.run(SELECT_FROM, 2, 180)).data)
        assert [row[0] for row in rows] == [b"5", b"150"]
        assert (await c.run(ADD_TO_ALL, 1000)).rows == 4
        assert [await c.balance(i) for i in (1, 5, 150, 200)] == [1001, 1005, 1150, 1200]
        plan, program = c.plan(COUNT_FROM)
        one = program.param_layout.encode((1, 50))
        both = program.param_layout.encode((1, 500))
        assert not c.driver.needs_fallback(plan, program, one)
        assert c.driver.needs_fallback(plan, program, both)
        assert fields((await c.run(COUNT_FROM, 1, 50)).data) == [[b"2"]]

    with_cluster(tmp_path, test)


def test_transaction_over_both_shards(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 100)
        await c.run(INSERT, 150, 100)
        txn = c.driver.begin()
        await c.run(ADD, 1, -30, txn=txn)
        await c.run(ADD, 150, 30, txn=txn)
        assert await c.balance(1, txn) == 70
        assert await c.balance(1) == 100  # not committed: others do not see it
        await c.driver.commit(txn)
        assert [await c.balance(1), await c.balance(150)] == [70, 130]
        txn = c.driver.begin()
        await c.run(ADD, 1, -30, txn=txn)
        await c.run(ADD, 150, 30, txn=txn)
        await c.driver.rollback(txn)
        assert [await c.balance(1), await c.balance(150)] == [70, 130]

    with_cluster(tmp_path, test)


def test_savepoints_take_back_later_statements(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        txn = c.driver.begin()
        first = c.driver.mark(txn)
        await c.run(ADD, 1, 1, txn=txn)
        second = c.driver.mark(txn)
        await c.run(ADD, 1, 10, txn=txn)
        await c.run(ADD, 150, 10, txn=txn)
        await c.driver.rollback_to(txn, second)
        assert [await c.balance(1, txn), await c.balance(150, txn)] == [1, 0]
        await c.driver.rollback_to(txn, first)
        assert await c.balance(1, txn) == 0
        await c.run(ADD, 150, 3, txn=txn)
        await c.driver.commit(txn)
        assert [await c.balance(1), await c.balance(150)] == [0, 3]

    with_cluster(tmp_path, test)


def test_writers_of_one_row_wait_and_see_the_newest_version(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        txn = c.driver.begin()
        await c.run(SELECT_FOR_UPDATE, 1, txn=txn)
        waiting = [asyncio.create_task(c.run(ADD, 1, 1)) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        await c.run(ADD, 1, 100, txn=txn)
        await c.driver.commit(txn)
        await asyncio.gather(*waiting)
        assert await c.balance(1) == 120

    with_cluster(tmp_path, test)


def test_deadlock_on_one_shard_is_found(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 2, 0)
        one, two = c.driver.begin(), c.driver.begin()
        await c.run(ADD, 1, 1, txn=one)
        await c.run(ADD, 2, 1, txn=two)
        waiting = asyncio.create_task(c.run(ADD, 2, 1, txn=one))
        await asyncio.sleep(0.05)
        with pytest.raises(SqlError) as caught:
            await c.run(ADD, 1, 1, txn=two)
        assert caught.value.sqlstate == "40P01"
        await c.driver.rollback(two)
        await waiting
        await c.driver.commit(one)
        assert [await c.balance(1), await c.balance(2)] == [1, 1]

    with_cluster(tmp_path, test)


def test_bulk_writes_and_scans(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        pairs = [(i, i % 7) for i in range(-2000, 2000)]
        txn = c.driver.begin()
        result = await c.driver.write(txn, TABLE.id, "insert", *c.rows(pairs))
        assert result.count == 4000
        stage = ScanStage("t", TABLE.id, (0, 1), b"", b"", "", True)
        assert (await c.driver.run_scan(None, stage)).num_rows == 0
        assert (await c.driver.run_scan(txn, stage)).num_rows == 4000
        assert await c.balance(8, txn) == 1
        await c.driver.commit(txn)
        table = await c.driver.run_scan(None, stage)
        assert sorted(zip(*(table[n].to_pylist() for n in ("c0", "c1")), strict=True)) == pairs
        few = ScanStage(
            "t", TABLE.id, (0,), c.codec.encode((50,)), c.codec.encode((150,)), "c1 > 5"
        )
        table = await c.driver.run_scan(None, few)
        assert sorted(table["c0"].to_pylist()) == [i for i in range(50, 150) if i % 7 > 5]
        txn = c.driver.begin()
        with pytest.raises(SqlError) as caught:
            await c.driver.write(
                txn, TABLE.id, "insert", *c.rows([(i, 0) for i in range(1999, 4000)])
            )
        assert caught.value.sqlstate == "23505"
        await c.driver.rollback(txn)
        assert (await c.driver.run_scan(None, stage)).num_rows == 4000

    with_cluster(tmp_path, test)


def test_a_write_by_query_is_refused_if_its_row_changed(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        stage = ScanStage("t", TABLE.id, (0, 1), b"", b"", "", True)
        table = await c.driver.run_scan(None, stage)
        await c.run(ADD, 1, 5)
        txn = c.driver.begin()
        keys, rows = c.rows([(1, 77)])
        with pytest.raises(SqlError) as caught:
            await c.driver.write(txn, TABLE.id, "update", keys, rows, table["_ts"].to_pylist())
        assert (caught.value.sqlstate, caught.value.message) == ("40001", "row changed")
        table = await c.driver.run_scan(txn, stage)
        await c.driver.write(txn, TABLE.id, "update", keys, rows, table["_ts"].to_pylist())
        table = await c.driver.run_scan(txn, stage)
        assert table["c1"].to_pylist() == [77]
        await c.driver.write(txn, TABLE.id, "delete", keys, [], table["_ts"].to_pylist())
        await c.driver.commit(txn)
        assert await c.balance(1) is None

    with_cluster(tmp_path, test)


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        for ident in (1, 150):
            await c.run(INSERT, ident, ident)
        txn = c.driver.begin()
        await c.driver.write(txn, TABLE.id, "insert", *c.rows([(i, i) for i in range(1000, 3000)]))
        await c.run(ADD, 1, 1, txn=txn)
        await c.driver.commit(txn)
        await c.run(DELETE, 150)
        for node_id in (1, 2):
            await c.stop_node(node_id)
            await c.start_node(node_id)
        assert [await c.balance(i) for i in (1, 150, 1000, 2999)] == [2, None, 1000, 2999]
        await c.run(ADD, 1, 1)
        assert await c.balance(1) == 3

    with_cluster(tmp_path, test)


def test_prepared_transactions_are_finished_after_a_restart(tmp_path: Path) -> None:
    """One had prepared everywhere: it commits. The other had not: it aborts, on both shards."""

    async def test(c: Cluster) -> None:
        from coordinator.commit import TwoPhaseRun

        for ident in (1, 2, 150, 151):
            await c.run(INSERT, ident, 0)
        everywhere, partly = c.driver.begin(), c.driver.begin()
        for txn, low, high in ((everywhere, 1, 150), (partly, 2, 151)):
            await c.run(ADD, low, 5, txn=txn)
            await c.run(ADD, high, 5, txn=txn)
        tell = TwoPhaseRun._tell
        TwoPhaseRun._tell = lambda *_: None  # the coordinator dies before it tells the outcome
        try:
            await c.driver.commit(everywhere)
        finally:
            TwoPhaseRun._tell = tell
        await prepare_first_only(c, partly)
        assert c.servers[1].node.ranges[30001].participant.prepared
        await c.driver.close()
        for node_id in (1, 2):
            await c.stop_node(node_id)
        for node_id in (1, 2):
            await c.start_node(node_id)
        await c.start_driver()
        assert [await c.balance(1), await c.balance(150)] == [5, 5]
        assert [await c.balance(2), await c.balance(151)] == [0, 0]
        await c.run(ADD, 2, 1)  # the locks are gone
        assert not c.servers[1].node.ranges[30001].participant.prepared

    with_cluster(tmp_path, test)


async def prepare_first_only(c: Cluster, txn: object) -> None:
    """Sends PREPARE for a transaction to shard 1 alone."""
    from shardb.rpc import messages as m

    parts = [txn.parts[30001], txn.parts[30002]]  # type: ignore[attr-defined]
    issued = c.oracle.issue()
    message = m.Prepare(
        30001,
        m.TxnRef(txn.txn_id, parts[0].state_id, txn.statement, issued),  # type: ignore[attr-defined]
        tuple(parts[0].statements),
        tuple(m.Participant(p.range.id, p.range.primary, b"", p.state_id) for p in parts),
        0,
        issued,
    )
    reply = await c.driver.client(1).request(message)
    assert isinstance(reply, m.Prepared)


def test_a_lost_shard_fails_its_transactions_and_serves_again(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        txn = c.driver.begin()
        await c.run(ADD, 1, 1, txn=txn)
        await c.run(ADD, 150, 1, txn=txn)
        await c.stop_node(2)
        await c.start_node(2)
        with pytest.raises(SqlError) as caught:
            await c.driver.commit(txn)
        assert caught.value.sqlstate == "40001"
        assert [await c.balance(1), await c.balance(150)] == [0, 0]
        await c.run(ADD, 1, 1)
        await c.run(ADD, 150, 1)

    with_cluster(tmp_path, test)


def test_transfers_keep_the_sum(tmp_path: Path) -> None:
    """Concurrent transfers over both shards; snapshots over both see the same sum always."""

    async def test(c: Cluster) -> None:
        accounts = [1, 2, 3, 150, 151, 152]
        for ident in accounts:
            await c.run(INSERT, ident, 100)
        stage = ScanStage("t", TABLE.id, (0, 1), b"", b"", "")

        async def transfer(number: int) -> None:
            for step in range(15):
                source, target = sorted(
                    (accounts[(number + step) % 6], accounts[(number * 2 + step + 1) % 6])
                )
                if source == target:
                    continue
                txn = c.driver.begin()
                await c.run(ADD, source, -1, txn=txn)
                await c.run(ADD, target, 1, txn=txn)
                await c.driver.commit(txn)

        async def look() -> None:
            for _ in range(20):
                table = await c.driver.run_scan(None, stage)
                assert sum(table["c1"].to_pylist()) == 600
                rows = fields((await c.run(SELECT_FROM, 0, 1000)).data)
                assert sum(int(row[1]) for row in rows) == 600
                await asyncio.sleep(0.005)

        await asyncio.gather(look(), *(transfer(number) for number in range(8)))
        assert sum([await c.balance(i) or 0 for i in accounts]) == 600

    with_cluster(tmp_path, test)


def test_a_cancelled_statement_leaves_nothing_behind(tmp_path: Path) -> None:
    """Outside a transaction by the call, inside by rolling back while the statement waits."""

    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        holder = c.driver.begin()
        await c.run(ADD, 1, 1, txn=holder)
        plan, program = c.plan(ADD)
        params = program.param_layout.encode((1, 10))
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        call = c.driver.execute_row(None, plan, program, params, b"", done.set_result)
        await asyncio.sleep(0.02)
        call.cancel(SqlError("57014", "canceling statement due to user request"))
        error = await asyncio.wait_for(done, 5)
        assert isinstance(error, SqlError) and error.sqlstate == "57014"
        waiting = c.driver.begin()
        task = asyncio.create_task(c.run(ADD, 1, 100, txn=waiting))
        await asyncio.sleep(0.02)
        await c.driver.rollback(waiting)
        with pytest.raises(SqlError):
            await task
        await c.driver.commit(holder)
        assert await c.balance(1) == 1
        assert not c.servers[1].node.ranges[30001].participant.states
        assert len(c.servers[1].node.locks) == 0

    with_cluster(tmp_path, test)


def test_a_cancelled_statement_of_a_transaction_leaves_its_others(tmp_path: Path) -> None:
    """A program and a write by key wait, are cancelled, and the transaction goes on."""

    async def test(c: Cluster) -> None:
        for ident in (1, 2):
            await c.run(INSERT, ident, 0)
        holder, other = c.driver.begin(), c.driver.begin()
        await c.run(ADD, 1, 1, txn=holder)
        await c.run(ADD, 2, 5, txn=other)
        plan, program = c.plan(ADD)
        params = program.param_layout.encode((1, 10))
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        call = c.driver.execute_row(other, plan, program, params, b"", done.set_result)
        await asyncio.sleep(0.02)
        call.cancel(lock_timed_out())
        error = await asyncio.wait_for(done, 5)
        assert isinstance(error, SqlError) and error.sqlstate == "55P03"
        write = c.driver.write(other, TABLE.id, "put", *c.rows([(1, 7)]))
        task = asyncio.create_task(write)
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other.lock_timeout_s = 0.02
        with pytest.raises(SqlError) as caught:
            await c.driver.write(other, TABLE.id, "put", *c.rows([(1, 7)]))
        assert caught.value.sqlstate == "55P03"
        await c.driver.commit(holder)
        await c.driver.commit(other)
        assert [await c.balance(1), await c.balance(2)] == [1, 5]
        assert len(c.servers[1].node.locks) == 0
        assert not c.driver.gate.calls

    with_cluster(tmp_path, test)
