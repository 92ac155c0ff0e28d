"""Deadlocks and lock modes on real shards: who waits, who goes on, who is told what."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shardb.errors import SqlError
from shardb.program import ProgramSpec
from tests.support.shards import (
    ADD,
    BY_ID,
    DELETE,
    FIRST,
    ID,
    INSERT,
    INSERT_IGNORE,
    INT4,
    SECOND,
    TABLE,
    Cluster,
    with_cluster,
)


def locking(name: str) -> ProgramSpec:
    return ProgramSpec(TABLE.id, 1, "select", (INT4,), BY_ID, output=(ID,), locking=name)


KEY_SHARE = locking("key share")
MOVE = ProgramSpec(
    TABLE.id, 1, "update", (INT4, INT4), BY_ID, assignments=((0, SECOND), (1, FIRST))
)


async def waits(c: Cluster, spec: ProgramSpec, *values: int) -> bool:
    """True if a statement on its own waits for a lock; it is rolled back."""
    txn = c.driver.begin()
    task = asyncio.create_task(c.run(spec, *values, txn=txn))
    await asyncio.wait((task,), timeout=0.05)
    waiting = not task.done()
    await c.driver.rollback(txn)
    await asyncio.gather(task, return_exceptions=True)
    return waiting


async def ended(work: Any) -> str:
    """The SQLSTATE that something ends with, "" if it ends well."""
    try:
        await work
    except SqlError as error:
        return error.sqlstate
    return ""


def test_only_changes_of_keys_wait_for_key_share(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        txn = c.driver.begin()
        await c.run(KEY_SHARE, 1, txn=txn)
        assert not await waits(c, ADD, 1, 1)
        assert await waits(c, DELETE, 1)
        assert await waits(c, MOVE, 1, 2)
        assert await waits(c, locking("update"), 1)
        assert not await waits(c, locking("no key update"), 1)
        await c.driver.commit(txn)
        updating = c.driver.begin()
        await c.run(ADD, 1, 1, txn=updating)
        assert not await waits(c, KEY_SHARE, 1)
        assert await waits(c, locking("share"), 1)
        await c.driver.commit(updating)

    with_cluster(tmp_path, test)


def test_an_insert_does_not_wait_for_who_only_locks_the_row_that_is_there(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        txn = c.driver.begin()
        await c.run(locking("update"), 1, txn=txn)
        assert not await waits(c, INSERT_IGNORE, 1, 5)
        with pytest.raises(SqlError) as caught:
            await asyncio.wait_for(c.run(INSERT, 1, 5), 5)
        assert caught.value.sqlstate == "23505"
        await c.run(ADD, 1, 1, txn=txn)
        assert await waits(c, INSERT_IGNORE, 1, 5)
        await c.driver.rollback(txn)

    with_cluster(tmp_path, test)


def test_locks_of_all_modes_outlive_a_crash_of_prepared_transactions(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        from coordinator.commit import TwoPhaseRun

        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        writer, holder = c.driver.begin(), c.driver.begin()
        for txn, spec, values in ((writer, ADD, (1,)), (holder, KEY_SHARE, ())):
            for ident in (1, 150):
                await c.run(spec, ident, *values, txn=txn)
        runs = []
        for txn in (writer, holder):
            run = TwoPhaseRun(c.driver, txn, list(txn.parts.values()))
            run._tell = lambda *_: None  # type: ignore[method-assign]
            await run.run()
            runs.append(txn)
        local = c.servers[1].node.ranges[30001]
        assert len(local.participant.prepared) == 2
        await c.stop_node(1)
        await c.start_node(1)
        local = c.servers[1].node.ranges[30001]
        held = {
            state.txn_id: list(state.held.values()) for state in local.participant.prepared.values()
        }
        assert set(held) == {txn.txn_id for txn in runs} and all(held.values())
        assert await asyncio.wait_for(c.balance(1), 20) == 1

    with_cluster(tmp_path, test)


def test_a_deadlock_over_two_shards_is_ended(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        old, young = c.driver.begin(process_id=12), c.driver.begin(process_id=13)
        await c.run(ADD, 1, 1, txn=old)
        await c.run(ADD, 150, 1, txn=young)
        begun = asyncio.get_running_loop().time()
        first = asyncio.create_task(c.run(ADD, 1, 1, txn=young))
        second = asyncio.create_task(c.run(ADD, 150, 1, txn=old))
        with pytest.raises(SqlError) as caught:
            await first
        error = caught.value
        assert asyncio.get_running_loop().time() - begun < 1.5
        assert (error.sqlstate, error.message) == ("40P01", "deadlock detected")
        lines = error.detail.splitlines()
        assert len(lines) == 2
        assert lines[0].startswith("Process 13 waits for ShareLock on transaction ")
        assert lines[0].endswith("; blocked by process 12.")
        assert lines[1].endswith("; blocked by process 13.")
        await c.driver.rollback(young)
        await second
        await c.driver.commit(old)
        assert [await c.balance(1), await c.balance(150)] == [1, 1]

    with_cluster(tmp_path, test)


def test_waits_in_line_are_not_taken_for_a_deadlock(tmp_path: Path) -> None:
    async def test(c: Cluster) -> None:
        await c.run(INSERT, 1, 0)
        await c.run(INSERT, 150, 0)
        holder = c.driver.begin()
        await c.run(ADD, 1, 1, txn=holder)
        await c.run(ADD, 150, 1, txn=holder)
        txns = [c.driver.begin() for _ in range(6)]
        tasks = [
            asyncio.create_task(ended(c.run(ADD, ident, 1, txn=txn)))
            for txn, ident in zip(txns, [1, 150] * 3, strict=True)
        ]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in tasks)
        await c.driver.commit(holder)
        for txn, task in zip(txns, tasks, strict=True):
            assert await task == ""
            await c.driver.commit(txn)
        assert [await c.balance(1), await c.balance(150)] == [4, 4]

    with_cluster(tmp_path, test)


def test_many_who_lock_in_any_order_all_come_through(tmp_path: Path) -> None:
    """Each takes three rows of two shards in an order of its own, and tries again after 40P01."""

    async def test(c: Cluster) -> None:
        idents = (1, 2, 150, 151)
        for ident in idents:
            await c.run(INSERT, ident, 0)
        deadlocks = 0

        async def worker(number: int) -> None:
            nonlocal deadlocks
            for turn in range(6):
                order = [idents[(number * 3 + turn + i * (1 + number % 3)) % 4] for i in range(3)]
                while True:
                    txn = c.driver.begin(process_id=number + 1)
                    states = ""
                    for ident in order:
                        states = await ended(c.run(ADD, ident, 1, txn=txn))
                        if states:
                            break
                        await asyncio.sleep(0.005)
                    if not states:
                        await c.driver.commit(txn)
                        break
                    assert states == "40P01"
                    deadlocks += 1
                    await c.driver.rollback(txn)

        await asyncio.wait_for(asyncio.gather(*(worker(n) for n in range(8))), 50)
        total = sum([await c.balance(ident) or 0 for ident in idents])
        assert total == 8 * 6 * 3
        for server in c.servers.values():
            assert len(server.node.locks) == 0 and not server.node.locks.waits

    with_cluster(tmp_path, test)
