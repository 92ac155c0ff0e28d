"""Frames of the shard protocol: packed, cut out of a stream, and rows dealt out to ranges."""

from __future__ import annotations

import struct
from array import array

from bench.micro.harness import measure
from shardb import limits
from shardb._core.frames import (
    FrameReader,
    join_items,
    pack_execute,
    pack_rows,
    split_by_range,
    split_items,
)
from shardb.rpc import messages as m

CALLS = 200_000


def main() -> None:
    request = m.Execute(1, 2, 0, 3, 4, m.TxnRef(bytes(16), 5, 6, 7), False, 0, bytes(20), b"")
    data = bytes(120)
    measure("pack Execute", lambda: [pack_execute(1, request) for _ in range(CALLS)], CALLS)
    measure("pack Rows", lambda: [pack_rows(1, data, 1, 2, 3, 4) for _ in range(CALLS)], CALLS)
    for name, frame in (
        ("Execute", pack_execute(1, request)),
        ("Rows", pack_rows(1, data, 1, 2, 3, 4)),
    ):
        reader = FrameReader(m.Execute, m.TxnRef, m.Rows, limits.RPC_MESSAGE_MAX_BYTES)
        stream = frame * 10
        measure(
            f"read {name}, ten at once",
            lambda reader=reader, stream=stream: [reader.feed(stream) for _ in range(CALLS // 10)],  # type: ignore[misc]
            CALLS,
        )
    items = [bytes(60)] * CALLS
    joined = join_items(items)
    measure("join items", lambda: join_items(items), CALLS)
    measure("split items", lambda: split_items(joined, CALLS), CALLS)
    keys = b"".join(struct.pack(">Q", n * 7919 % CALLS) for n in range(CALLS))
    key_at = array("Q", range(0, 8 * CALLS + 1, 8))
    row_at = array("Q", range(0, 60 * CALLS + 1, 60))
    rows = bytes(60 * CALLS)
    starts = [b"", *(struct.pack(">Q", CALLS // 8 * n) for n in range(1, 8))]
    measure(
        "deal out to 8 ranges",
        lambda: split_by_range(keys, key_at, rows, row_at, starts),
        CALLS,
    )
