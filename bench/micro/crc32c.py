"""Checksums of 16 MiB and of a log record."""

from __future__ import annotations

import os
from functools import partial

from bench.micro.harness import measure, median_seconds, report
from shardb._core.crc32c import crc32c, crc32c_portable

CALLS = 200_000


def main() -> None:
    data = os.urandom(1 << 24)
    for function in (crc32c, crc32c_portable):
        report(function.__name__, len(data) / median_seconds(partial(function, data)), "B/s")
    record = data[:400]
    measure("crc32c of 400 bytes", lambda: [crc32c(record) for _ in range(CALLS)], CALLS)
