"""Types of what a tablet's runs consist of, as `_core.runs.Runs` takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from shardb._core.memtable import MemTable
from shardb._core.rowmap import RowMap
from shardb._core.segment import Segment

Piece: TypeAlias = tuple[MemTable | Segment, RowMap | None]
Run: TypeAlias = tuple[bool, Sequence[Piece]]  # (own, pieces), see Runs
