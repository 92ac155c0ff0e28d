"""COPY data to dealt rows like lineitem's, beside Python's csv and one row at a time."""

from __future__ import annotations

import csv
import random
from bisect import bisect_right
from functools import partial
from typing import Final

from bench.micro.harness import measure, report
from shardb import limits
from shardb._core.copytext import CopyReader
from shardb._core.keycodec import KeyCodec
from shardb._core.rowcodec import RowLayout
from shardb._core.rowdeal import RowDealer
from shardb.types import TypeCode

ROWS: Final = 100_000
MONEY: Final = (TypeCode.NUMERIC, (15 << 16 | 2) + 4)
TYPES: Final = [
    *[(TypeCode.INT8, -1)] * 3,
    (TypeCode.INT4, -1),
    *[MONEY] * 4,
    *[(TypeCode.BPCHAR, 4 + 1)] * 2,
    *[(TypeCode.DATE, -1)] * 3,
    (TypeCode.BPCHAR, 4 + 25),
    (TypeCode.BPCHAR, 4 + 10),
    (TypeCode.VARCHAR, 4 + 44),
]
LAYOUT: Final = RowLayout(1, TYPES)
KEY_AT: Final = (0, 3)
CODEC: Final = KeyCodec([(*TYPES[at], False, False) for at in KEY_AT])
STARTS: Final = (b"", CODEC.encode_prefix([ROWS // 8]))


def line(number: int, draw: random.Random) -> str:
    """A line like lineitem's."""
    day = f"{draw.randint(1992, 1998)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}"
    return (
        f"{number // 4},{draw.randint(1, 200_000)},{draw.randint(1, 10_000)},{number % 4 + 1},"
        f"{draw.randint(1, 50)},{draw.randint(900, 100_000)}.{draw.randint(0, 99):02},0.04,0.02,"
        f'N,O,{day},{day},{day},DELIVER IN PERSON,TRUCK,"{"quickly, carefully " * 2}"\n'
    )


def deal(data: bytes) -> int:
    """All rows by the reader, a MiB at a time."""
    dealer = RowDealer(
        LAYOUT,
        CODEC,
        KEY_AT,
        STARTS,
        limits.KEY_MAX_BYTES,
        limits.ROW_MAX_BYTES,
        limits.BULK_BATCH_BYTES,
        limits.BULK_HELD_MAX_BYTES,
    )
    columns = list(range(len(TYPES)))
    names = [f"c{at}" for at in columns]
    defaults = LAYOUT.encode([None] * len(columns))
    reader = CopyReader(
        dealer, "t", names, columns, columns, defaults, csv=True, delimiter=b",", null=b""
    )
    count = 0
    for at in range(0, len(data), limits.MIB):
        parts = [data[at : at + limits.MIB]]
        while not reader.feed(parts):
            count += sum(batch[1] for batch in dealer.take())
            parts = []
    assert reader.feed([], final=True)
    return count + sum(batch[1] for batch in dealer.take(True))


def one_by_one(data: bytes) -> int:
    """The same in Python."""
    hands: list[list[tuple[bytes, bytes]]] = [[] for _ in STARTS]
    for record in csv.reader(data.decode().splitlines()):
        row = LAYOUT.encode_text([value.encode() for value in record])
        key = CODEC.key_of_row(LAYOUT, KEY_AT, row)
        hands[bisect_right(STARTS, key) - 1].append((key, row))
    return sum(map(len, hands))


def main() -> None:
    draw = random.Random(1)
    data = "".join(line(number, draw) for number in range(ROWS)).encode()
    assert deal(data) == one_by_one(data) == ROWS
    report("bytes a line", len(data) / ROWS, "bytes")
    measure("CopyReader, RowDealer", partial(deal, data), ROWS)
    measure("csv, one by one", partial(one_by_one, data), ROWS)
