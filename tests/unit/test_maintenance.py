"""Flushes and schema changes that meet in the manifest."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from shardb.meta.descriptors import Column
from shardb.types import TypeCode
from tests.support.shards import INSERT, TABLE, Cluster, with_cluster

ALTERED = msgspec.structs.replace(
    TABLE,
    version=TABLE.version + 1,
    schema_version=TABLE.schema_version + 1,
    columns=(*TABLE.columns, Column(3, "added", TypeCode.INT4)),
    history=(TABLE.layout,),
)


def test_a_table_is_altered_while_a_flush_is_being_named(tmp_path: Path) -> None:
    async def check(cluster: Cluster) -> None:
        await cluster.run(INSERT, 1, 10)
        node = cluster.servers[1].node
        engine, local = node.engine, node.ranges[cluster.ranges[0].id]
        key = local.id, TABLE.id
        tablet = engine.tablets[key]
        engine.freeze(tablet)
        engine.maintenance.pump()
        while engine.manifest.planned.tablets[key].flushed_index == tablet.settled_index:
            await asyncio.sleep(0)
        local.install(ALTERED)
        while tablet.unsettled or engine.descriptors[key] != (
            engine.manifest.current.tablets[key].descriptor
        ):
            await asyncio.sleep(0.01)
        assert engine.manifest.current.tablets[key].flushed_index == tablet.settled_index > 0
        await cluster.stop_node(1)
        await cluster.start_node(1)
        assert cluster.servers[1].node.ranges[local.id].tables[TABLE.id] == ALTERED
        assert await cluster.balance(1) == 10

    with_cluster(tmp_path, check)
