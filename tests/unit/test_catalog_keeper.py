"""The catalog follows the store, and plans live on when only nodes come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from coordinator.catalog import Catalog
from coordinator.cluster import CatalogKeeper
from coordinator.plan.cache import PlanCache
from coordinator.sql.compiler import Compiler
from shardb._core.rowprog import Program
from shardb.meta import schema
from shardb.meta.descriptors import Column, Group, Node, Range, Table
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.store import Put
from shardb.types import TypeCode

TABLE = Table(1, "t", 2, (Column(1, "k", TypeCode.INT4, not_null=True),), (0,))
RANGE = Range(3, 2, b"", b"", 1, 1, (1,), (1,))


class Loop:
    def background(self, work: Coroutine[Any, Any, None]) -> object:
        return asyncio.get_running_loop().create_task(work)

    def waiter(self) -> Any:
        return asyncio.get_running_loop().create_future()


def put(kind: type, value: Any) -> Put:
    return Put(schema.key_of(kind, value.id), schema.encode(value))


def run(path: Path, test: Callable[..., Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = EmbeddedStore(path / "meta")
        descriptors = [put(Table, TABLE), put(Group, Group(2, (1,))), put(Range, RANGE)]
        await store.txn([], descriptors)
        seen: list[Catalog] = []
        keeper = CatalogKeeper(store, Loop(), seen.append)
        await keeper.read()
        following = asyncio.create_task(keeper.follow())
        try:
            await asyncio.wait_for(test(store, keeper, seen), 10)
        finally:
            following.cancel()
            await store.close()

    asyncio.run(main())


def test_a_node_changes_the_catalog_but_no_plan(tmp_path: Path) -> None:
    async def test(store: EmbeddedStore, keeper: CatalogKeeper, seen: list[Catalog]) -> None:
        plans = PlanCache(Compiler(keeper.catalog), Program)
        entry = plans.exact(b"SELECT k FROM t WHERE k = 1")
        version = keeper.catalog.version
        for address in ("unix:/a", "unix:/b"):
            result = await store.txn([], [put(Node, Node(1, address))])
            catalog = await keeper.reached(result.revision)
            assert catalog.nodes[1].address == address
            assert catalog is seen[-1]
            plans.use(Compiler(catalog))
        assert keeper.catalog.version == plans.version == version
        assert plans.compiler.catalog.nodes[1].address == "unix:/b"
        assert plans.exact(b"SELECT k FROM t WHERE k = 1") is entry
        result = await store.txn([], [put(Range, RANGE)])
        plans.use(Compiler(await keeper.reached(result.revision)))
        assert plans.version == result.revision
        assert plans.exact(b"SELECT k FROM t WHERE k = 1") is not entry

    run(tmp_path, test)
