"""The timestamp oracle's shell over a metadata store that comes and goes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator.oracle import OracleService
from shardb.errors import SqlError
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.store import StoreUnavailable

STEP_MS = 2_000  # of the clock: time for a new bound


class FakeClock:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def wall_ms(self) -> int:
        return self.ms


class Forgetful:
    """A store that carries out transactions, but loses `lost` answers and drops `dropped` calls."""

    def __init__(self, store: EmbeddedStore) -> None:
        self.store = store
        self.lost = 0
        self.dropped = 0

    async def get(self, key: str) -> Any:
        return await self.store.get(key)

    async def txn(self, *operations: Any) -> Any:
        if self.dropped:
            self.dropped -= 1
            raise StoreUnavailable("no answer")
        result = await self.store.txn(*operations)
        if self.lost:
            self.lost -= 1
            raise StoreUnavailable("the connection was lost")
        return result


async def later(oracle: OracleService, clock: FakeClock) -> int:
    """A timestamp asked for after a while, with time for a new bound to be persisted."""
    clock.ms += STEP_MS
    issued = 0
    for _ in range(5):
        try:
            issued = oracle.issue()
        except SqlError:
            issued = 0
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return issued


@pytest.mark.parametrize(("lost", "dropped"), [(1, 0), (1, 1), (1, 3), (0, 2)])
def test_lost_answers_of_the_store_do_not_end_the_oracle(
    tmp_path: Path, lost: int, dropped: int
) -> None:
    async def main() -> None:
        store = Forgetful(EmbeddedStore(tmp_path / "meta"))
        clock = FakeClock()
        oracle = OracleService(store, clock, asyncio.ensure_future, "a")
        await oracle.start()
        last = oracle.issue()
        store.lost = lost
        await later(oracle, clock)
        store.dropped = dropped
        for _ in range(6):
            issued = await later(oracle, clock)
            assert issued > last
            last = issued

    asyncio.run(main())


def test_an_oracle_that_another_has_replaced_issues_nothing_beyond_its_bound(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        store = EmbeddedStore(tmp_path / "meta")
        clock = FakeClock()
        first = OracleService(store, clock, asyncio.ensure_future, "a")
        await first.start()
        second = OracleService(store, clock, asyncio.ensure_future, "b")
        await second.start()
        assert second.issue() > first.issue()
        clock.ms += STEP_MS
        for _ in range(3):
            await later(second, clock)
        assert await later(first, clock) == 0
        assert await later(second, clock) > 0

    asyncio.run(main())
