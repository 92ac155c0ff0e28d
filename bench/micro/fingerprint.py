"""Fingerprints of statements with literals, short and long."""

from __future__ import annotations

from functools import partial

from bench.micro.harness import measure
from shardb._core.fingerprint import fingerprint

CALLS = 100_000
STATEMENTS = {
    "point select": b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
    "insert": b"INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) "
    b"VALUES (10, 1, 4711, -2500, CURRENT_TIMESTAMP);",
    "insert of 20 rows": b"INSERT INTO t VALUES " + b", ".join([b"(1, 'text', 2.5)"] * 20),
}


def repeat(text: bytes, calls: int) -> None:
    for _ in range(calls):
        fingerprint(text)


def main() -> None:
    for name, text in STATEMENTS.items():
        assert fingerprint(text) is not None
        calls = CALLS * 100 // (100 + len(text))
        measure(name, partial(repeat, text, calls), calls)
