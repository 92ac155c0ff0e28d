"""Scans over memtables and segment files give what plain Python says is visible."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardb._core.coreerror import CoreError
from shardb._core.keycodec import KeyCodec
from shardb._core.memtable import MemTable
from shardb._core.runs import Runs
from shardb._core.segment import Segment
from shardb._core.shadow import Shadows
from shardb.storage.scan import TabletScan, scan_runs
from shardb.types import TypeCode
from tests.support.tablet_model import (
    LAYOUTS,
    VERSIONS,
    TabletModel,
    Values,
    Version,
    arrow_types,
    cells,
    make_memtable,
    open_segment,
    row_map,
    write_segment,
)

if TYPE_CHECKING:
    from shardb._core.runs import Run

INT8_KEY = KeyCodec([(int(TypeCode.INT8), -1, False, False)])
KEYS = st.sampled_from([b"", b"a", b"a\0", b"ab", b"b", b"ba", b"bb", b"c", b"ca", b"\xff"])
VALUES = st.fixed_dictionaries(
    {
        1: st.none() | st.integers(-3, 3),
        2: st.none() | st.text("ab€", max_size=3),
        3: st.none() | st.booleans(),
        4: st.none() | st.integers(-999, 999).map(lambda n: Decimal(n).scaleb(-2)),
        5: st.none() | st.integers(-3, 3),
        6: st.none() | st.text("xy", max_size=12),
        7: st.none() | st.floats(allow_nan=False),
    }
)
WRITES = st.dictionaries(KEYS, st.none() | VALUES, min_size=1, max_size=6)
STEPS = st.lists(
    st.sampled_from(
        [
            "put",
            "put",
            "put",
            "put",
            "again",
            "freeze",
            "flush",
            "flush",
            "link",
            "compact",
            "alter",
        ]
        + ["clear"]
    ),
    min_size=3,
    max_size=25,
)


def only_of(version: int, values: Values | None) -> Values | None:
    """What is left of a row in a version of the table."""
    return None if values is None else {c: values[c] for c in VERSIONS[version] if c in values}


def step(data: st.DataObject, model: TabletModel, name: str) -> None:
    if name == "put":
        rows = data.draw(WRITES)
        model.put({key: only_of(model.version, values) for key, values in rows.items()})
    elif name == "again":
        newest = {
            key: versions[-1][1]
            for key, versions in model.history.items()
            if versions[-1][0] == model.ts
        }
        if model.runs[0].version == model.version and model.runs[1:2] != []:
            if not model.runs[1].link_ts and model.runs[1].version == model.version:
                model.put(newest, again=True)
    elif name == "freeze":
        model.freeze()
    elif name == "clear":
        model.shadows.clear()
    elif name == "alter":
        model.alter(data.draw(st.sampled_from([v for v in VERSIONS if v >= model.version])))
    elif name == "link":
        rows = data.draw(WRITES)
        model.link([(k, 1, only_of(model.version, v)) for k, v in rows.items()], data.draw(KEYS))
    else:
        if name == "flush":
            model.freeze()
            able = [at for at, run in enumerate(model.runs) if at and run.is_memtable]
        else:
            flags = [run.is_memtable for run in model.runs]
            able = [at for at in range(1, len(flags) - 1) if not (flags[at] or flags[at + 1])]
        if able:
            call = model.flush if name == "flush" else model.compact
            call(data.draw(st.sampled_from(able)), data.draw(KEYS), data.draw(st.booleans()))


def own_runs(
    data: st.DataObject, model: TabletModel, target: int
) -> tuple[list[Run], dict[bytes, Values | None]]:
    """A transaction's own memtable and segments, newest first, and what they say together."""
    runs: list[Run] = []
    own: dict[bytes, Values | None] = {}
    for number in range(data.draw(st.integers(0, 2))):
        version = data.draw(st.sampled_from(list(VERSIONS)))
        writes: list[dict[bytes, Values | None]] = data.draw(
            st.lists(WRITES, min_size=1, max_size=2)
        )
        rows: list[Version] = [
            (key, statement, only_of(version, values))
            for statement, of in enumerate(writes, 1)
            for key, values in of.items()
        ]
        own.update({key: values for key, _, values in rows})
        sources: list[Any] = [make_memtable(rows, version)]
        if data.draw(st.booleans()):
            model.number += 1000 + number
            sources = model.segments(rows, version, data.draw(KEYS))
        runs.insert(0, (True, [(source, row_map(version, target)) for source in sources]))
    return runs, own


def drawn(scan: TabletScan, batch_rows: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in scan:
        batch.validate(full=True)
        assert batch.schema == scan.schema
        assert 0 < batch.num_rows <= batch_rows
        rows += batch.to_pylist()
    return rows


def is_within(values: Values, version: int, bounds: list[tuple[int, Any, Any]]) -> bool:
    row = cells(values, version)
    return all(
        row[at] is not None
        and (low is None or row[at] >= low)
        and (high is None or row[at] <= high)
        for at, low, high in bounds
        if low is not None or high is not None
    )


def encoded(value: int | None) -> bytes:
    return b"" if value is None else INT8_KEY.encode([value])


def check_scan(data: st.DataObject, model: TabletModel) -> None:
    target = data.draw(st.sampled_from(list(VERSIONS)))
    runs, own = own_runs(data, model, target) if data.draw(st.booleans()) else ([], {})
    overlay: dict[bytes, bytes | None] = {}
    for key, values in data.draw(st.dictionaries(KEYS, st.none() | VALUES, max_size=3)).items():
        own[key] = only_of(target, values)
        row = None if values is None else LAYOUTS[target].encode(cells(values, target))
        overlay[key] = row
    columns = data.draw(st.lists(st.integers(0, 3), max_size=4, unique=True))
    ts = data.draw(st.integers(0, model.ts) | st.just(model.ts))
    start, end = data.draw(KEYS), data.draw(KEYS)
    batch_rows = data.draw(st.integers(1, 9))
    numbers = [at for at, c in enumerate(VERSIONS[target]) if c in (1, 5)]
    limit = st.none() | st.integers(-3, 3)
    bounds = data.draw(
        st.just([])
        | st.lists(st.tuples(st.sampled_from(numbers), limit, limit), min_size=1, max_size=2)
    )
    ordered = data.draw(st.booleans())
    with_key = data.draw(st.booleans()) or bool(bounds)
    scan = scan_runs(
        model.view(target, runs),
        columns,
        arrow_types(target, columns),
        ts,
        start,
        end,
        with_key,
        overlay,
        batch_rows,
        [(at, encoded(low), encoded(high)) for at, low, high in bounds],
        ordered,
        shadows=model.shadows,
    )
    found = drawn(scan, batch_rows)
    visible = {
        key: of
        for key, of in model.visible(ts, own).items()
        if key >= start and (not end or key < end)
    }
    expected = []
    for key, (values, stamp) in visible.items():
        row = {f"c{c}": cells(values, target)[c] for c in columns}
        if with_key:
            row |= {"_key": key, "_ts": stamp}
        expected.append(row or {"_rows": None})
    if bounds:
        keys = [row["_key"] for row in found]
        assert len(set(keys)) == len(keys)
        expected = [
            row
            for row in expected
            if row["_key"] in keys or is_within(visible[row["_key"]][0], target, bounds)
        ]
    if not ordered:
        found.sort(key=lambda row: repr(row) if not with_key else row["_key"])
        expected.sort(key=lambda row: repr(row) if not with_key else row["_key"])
    assert found == expected


@settings(max_examples=300, deadline=None)
@given(st.data(), STEPS, st.integers(1, 5), st.sampled_from(["", "", "lz4"]))
def test_scans_give_what_is_visible_whatever_the_runs(
    data: st.DataObject, steps: list[str], group_rows: int, codec: str
) -> None:
    model = TabletModel(group_rows, codec)
    for name in steps:
        step(data, model, name)
        if data.draw(st.booleans()):
            check_scan(data, model)
    check_scan(data, model)
