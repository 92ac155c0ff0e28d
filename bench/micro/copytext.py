"""COPY FROM: bytes of text and CSV to rows of an int4 and a text, 64 KiB at a time."""

from __future__ import annotations

from collections.abc import Callable

from bench.micro.harness import median_seconds, report
from shardb._core.copytext import CopyReader
from shardb._core.rowcodec import RowLayout
from shardb.types import TypeCode

ROWS = 200_000
CHUNK_BYTES = 64 * 1024


def reading(layout: RowLayout, data: bytes, csv: bool) -> Callable[[], None]:
    def work() -> None:
        reader = CopyReader(
            layout,
            "t",
            ["a", "b"],
            (0, 1),
            (0,),
            layout.encode((None, None)),
            csv=csv,
            delimiter=b"," if csv else b"\t",
            null=b"" if csv else b"\\N",
        )
        for at in range(0, len(data), CHUNK_BYTES):
            reader.feed(data[at : at + CHUNK_BYTES])
        reader.feed(b"", final=True)

    return work


def main() -> None:
    layout = RowLayout(1, [(TypeCode.INT4, -1), (TypeCode.TEXT, -1)])
    for name, delimiter in (("text", "\t"), ("csv", ",")):
        data = "".join(f"{n}{delimiter}some text of line {n}\n" for n in range(ROWS)).encode()
        seconds = median_seconds(reading(layout, data, name == "csv"))
        report(name, ROWS / seconds)
        report(f"{name}, bytes", len(data) / seconds, "B/s")
