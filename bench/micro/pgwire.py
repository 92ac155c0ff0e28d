"""Messages of clients: a Parse, Bind, Describe, Execute, Sync each, and a simple Query."""

from __future__ import annotations

import struct

from bench.micro.harness import measure
from shardb._core.pgwire import FrontendBuffer

CALLS = 50_000


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def main() -> None:
    value = struct.pack("!i", 4) + b"4711"
    bind = message(b"B", b"\0s1\0" + struct.pack("!HH", 0, 1) + value + struct.pack("!H", 0))
    execute = message(b"E", b"\0" + struct.pack("!I", 0))
    prepared = bind + message(b"D", b"P\0") + execute + message(b"S", b"")
    query = message(b"Q", b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\0")
    buffer = FrontendBuffer(1 << 20)

    def run_prepared() -> None:
        for _ in range(CALLS):
            buffer.feed(prepared)
            buffer.next()
            buffer.bind()
            buffer.next()
            buffer.target()
            buffer.next()
            buffer.execute()
            buffer.next()

    def run_query() -> None:
        for _ in range(CALLS):
            buffer.feed(query)
            buffer.next()
            buffer.text()

    measure("Bind, Describe, Execute, Sync", run_prepared, CALLS)
    measure("Query", run_query, CALLS)
    buffer.feed(prepared)
    assert buffer.next() == ord("B") and buffer.bind()[3] == [b"4711"]
