"""The contract of the metadata store, run against every implementation."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shardb.errors import SqlError, StorageError
from shardb.meta import schema
from shardb.meta.descriptors import Column, Node, Range, Table
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.registration import Registration
from shardb.meta.remote import RemoteStore
from shardb.meta.service import MetaService
from shardb.meta.store import (
    Change,
    ChangeSet,
    Compacted,
    Compare,
    Delete,
    Get,
    Put,
    Store,
    StoreUnavailable,
    Watch,
)


class FakeClock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A store under test, its clock and the embedded store behind it."""

    def __init__(self, store: Store, clock: FakeClock, behind: EmbeddedStore) -> None:
        self.store = store
        self.clock = clock
        self.behind = behind


@asynccontextmanager
async def open_bench(kind: str) -> AsyncIterator[Bench]:
    clock = FakeClock()
    with tempfile.TemporaryDirectory(prefix="meta") as directory:
        behind = EmbeddedStore(Path(directory, "meta.db"), clock)
        if kind == "embedded":
            yield Bench(behind, clock, behind)
            await behind.close()
            return
        service = MetaService(behind, Path(directory, "s"))
        await service.start()
        remote = await RemoteStore(f"unix:{directory}/s").connect()
        yield Bench(remote, clock, behind)
        await remote.close()
        await service.stop()
        await behind.close()


Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture(params=["embedded", "remote"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    async def in_bench(scenario: Scenario) -> None:
        async with open_bench(request.param) as bench:
            await asyncio.wait_for(scenario(bench), 20)

    return lambda scenario: asyncio.run(in_bench(scenario))


async def next_of(watch: Watch) -> ChangeSet:
    return await asyncio.wait_for(anext(watch), 5)


def test_what_is_put_is_read(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        assert await store.get("a") is None
        first = await store.put("a", b"1")
        second = await store.put("a", b"2")
        assert second == first + 1
        found = await store.get("a")
        assert found is not None
        assert (found.value, found.create_revision, found.mod_revision) == (b"2", first, second)

    run(scenario)


def test_range_is_by_prefix_in_key_order(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        for key in ("b/2", "a/1", "b/1", "c", "b", "b0"):
            await bench.store.put(key, key.encode())
        snapshot = await bench.store.range("b/")
        assert [item.key for item in snapshot.items] == ["b/1", "b/2"]
        assert snapshot.revision == 6
        assert len((await bench.store.range("")).items) == 6

    run(scenario)


def test_txn_compares_then_changes_all_or_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        revision = await store.put("a", b"1")
        won = await store.txn(
            (Compare("a", revision), Compare("b", 0)), (Put("a", b"2"), Put("b", b"1"))
        )
        assert won.succeeded
        assert won.revision == revision + 1
        lost = await store.txn(
            (Compare("a", revision),), (Put("a", b"3"), Delete("b")), (Get("a"), Get("missing"))
        )
        assert not lost.succeeded
        assert lost.revision == won.revision
        assert lost.reads[0] is not None
        assert lost.reads[0].value == b"2"
        assert lost.reads[1] is None
        assert [item.value for item in (await store.range("")).items] == [b"2", b"1"]

    run(scenario)


def test_only_one_of_many_racing_creators_wins(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        results = await asyncio.gather(
            *(
                bench.store.txn((Compare("one", 0),), (Put("one", str(number).encode()),))
                for number in range(20)
            )
        )
        assert sum(result.succeeded for result in results) == 1

    run(scenario)


def test_deleting_what_is_not_there_changes_nothing(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        revision = await bench.store.put("a", b"")
        assert await bench.store.delete("b") == revision
        assert await bench.store.delete("a") == revision + 1
        assert await bench.store.get("a") is None

    run(scenario)


def test_writing_a_key_twice_at_once_is_refused(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(SqlError) as caught:
            await bench.store.txn((), (Put("a", b"1"), Delete("a")))
        assert caught.value.sqlstate == "22023"
        assert await bench.store.get("a") is None

    run(scenario)


def test_watch_gives_history_then_news_by_transaction(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        await store.put("t/1", b"old")
        start = (await store.range("t/")).revision + 1
        await store.txn((), (Put("t/2", b"x"), Put("u/1", b"y"), Delete("t/1")))
        watch = store.watch("t/", start)
        changes = (Change("t/1", None, 2), Change("t/2", b"x", 2))
        assert await next_of(watch) == ChangeSet(2, changes)
        await store.put("u/2", b"not ours")
        await store.put("t/3", b"z")
        assert await next_of(watch) == ChangeSet(4, (Change("t/3", b"z", 4),))
        watch.close()
        with pytest.raises(StopAsyncIteration):
            await next_of(watch)

    run(scenario)


def test_watch_from_a_compacted_revision_says_so(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(10):
            await bench.store.put("k", str(number).encode())
        bench.behind.compact(keep_revisions=4)
        with pytest.raises(Compacted) as caught:
            await next_of(bench.store.watch("k", 6))
        assert (caught.value.wanted, caught.value.oldest) == (6, 7)
        assert (await next_of(bench.store.watch("k", 7))).revision == 7

    run(scenario)


def test_keys_end_with_their_lease(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        store = bench.store
        lease = await store.grant_lease(1_000)
        await store.put("nodes/1", b"here", lease)
        watch = store.watch("nodes/", 2)
        bench.clock.now += 0.9
        assert await store.keep_alive(lease)
        bench.clock.now += 0.9
        assert await store.get("nodes/1") is not None
        bench.clock.now += 0.2
        assert await store.get("nodes/1") is None
        assert (await next_of(watch)).changes == (Change("nodes/1", None, 2),)
        assert not await store.keep_alive(lease)
        with pytest.raises(SqlError) as caught:
            await store.put("nodes/1", b"back", lease)
        assert caught.value.sqlstate == "55000"

    run(scenario)


def test_a_revoked_lease_takes_its_keys_along(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        lease = await bench.store.grant_lease(1_000)
        other = await bench.store.grant_lease(1_000)
        assert other != lease
        await bench.store.put("a", b"", lease)
        await bench.store.put("b", b"", other)
        await bench.store.put("a", b"unbound")
        await bench.store.revoke_lease(lease)
        await bench.store.revoke_lease(other)
        await bench.store.revoke_lease(other)
        assert [item.key for item in (await bench.store.range("")).items] == ["a"]

    run(scenario)


def test_ids_are_never_handed_out_twice(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        firsts = await asyncio.gather(*(schema.take_ids(bench.store, 3) for _ in range(8)))
        assert sorted(firsts) == [schema.FIRST_ID + 3 * number for number in range(8)]

    run(scenario)


def test_descriptors_come_back_as_they_went(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        table = Table(20_000, "t", 7, (Column(1, "id", 3, not_null=True),), (0,))
        piece = Range(9, 7, b"\x00\xff", b"", 1, 1, (1,), (1,))
        await bench.store.txn((), [schema.put(table), schema.put(piece)])
        assert await schema.read_all(bench.store, Table) == [table]
        assert await schema.read_all(bench.store, Range) == [piece]
        await bench.store.put(schema.key_of(Node, 1), b"{")
        with pytest.raises(SqlError) as caught:
            await schema.read_all(bench.store, Node)
        assert caught.value.sqlstate == "XX001"

    run(scenario)


def test_a_registration_renews_itself_and_goes_at_the_end(run: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        registration = Registration(bench.store, [("nodes/1", b"x")], 80, bench.clock)
        await registration.start()
        assert registration.valid
        bench.clock.now += 0.079
        await asyncio.sleep(0.06)
        bench.clock.now += 0.079
        assert registration.valid
        assert await bench.store.get("nodes/1") is not None
        bench.clock.now += 0.1
        assert not registration.valid
        await asyncio.sleep(0.06)
        assert registration.valid
        assert await bench.store.get("nodes/1") is not None
        await registration.stop()
        assert await bench.store.get("nodes/1") is None

    run(scenario)


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = EmbeddedStore(tmp_path / "meta.db")
        await store.put("a", b"1")
        lease = await store.grant_lease(60_000)
        revision = await store.put("b", b"2", lease)
        await store.close()
        again = EmbeddedStore(tmp_path / "meta.db")
        assert again.revision == revision
        assert [item.value for item in (await again.range("")).items] == [b"1", b"2"]
        assert await again.keep_alive(lease)
        assert (await next_of(again.watch("", 1))).changes[0].key == "a"
        assert await again.grant_lease(1_000) == lease + 1
        await again.close()

    asyncio.run(scenario())


def test_damage_and_newer_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StorageError) as damaged:
        EmbeddedStore(tmp_path / "bad.db")
    assert damaged.value.sqlstate == "XX001"
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(SqlError) as caught:
        EmbeddedStore(tmp_path / "newer.db")
    assert caught.value.sqlstate == "0A000"
    assert "format 99" in caught.value.message


def test_a_client_outlives_a_restart_of_the_service(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = Path(tempfile.mkdtemp(prefix="meta"), "s")
        store = EmbeddedStore(tmp_path / "meta.db")
        service = MetaService(store, path)
        await service.start()
        remote = await RemoteStore(str(path), timeout_seconds=5).connect()
        watch = remote.watch("", 1)
        await remote.put("a", b"1")
        assert (await next_of(watch)).revision == 1
        await service.stop()
        await store.put("b", b"2")
        service = MetaService(store, path)
        await service.start()
        assert await remote.get("b") is not None
        assert (await next_of(watch)).changes == (Change("b", b"2", 2),)
        await service.stop()
        impatient = RemoteStore(str(path), timeout_seconds=0.05)
        with pytest.raises(StoreUnavailable):
            await impatient.connect()
        await impatient.close()
        await remote.close()
        await store.close()
        path.parent.rmdir()

    asyncio.run(scenario())
