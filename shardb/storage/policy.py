"""Which runs of a tablet to merge next; pure.

Size-tiered, as universal compaction is: runs are ordered by age, and only neighbours merge, so that
for each key the newer run stays the newer. Merging runs of about one size keeps the writes per row
logarithmic; the bound on their number keeps reads short.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shardb import limits
from shardb.storage.segmentformat import SegmentMeta


class Choice(NamedTuple):
    """Runs `[first, end)`, newest first; `bottom`: there is nothing older than them."""

    first: int
    end: int
    bottom: bool


def choose(runs: Sequence[Sequence[SegmentMeta]], gc_ts: int, whole: bool = True) -> Choice | None:
    """What to merge among `runs`, newest first, or None. `whole`: there are none older than these.

    `gc_ts`: what only snapshots below it need may go, so that a run of many deletions is worth a
    merge of its own.
    """
    count = len(runs)
    sizes = [sum(meta.bytes for meta in run) for run in runs]
    if count >= limits.RUNS_MERGE_MIN:
        for first in range(count - limits.RUNS_MERGE_MIN + 1):
            end = _extend(sizes, first)
            if end - first >= limits.RUNS_MERGE_MIN:
                return Choice(first, end, whole and end == count)
    if count > limits.RUNS_TARGET_MAX:
        width = count - limits.RUNS_TARGET_MAX + 1
        first = min(range(count - width + 1), key=lambda at: sum(sizes[at : at + width]))
        return Choice(first, first + width, whole and first + width == count)
    if whole and runs and _is_mostly_dead(runs[-1], gc_ts):
        return Choice(count - 1, count, True)
    return None


def _extend(sizes: Sequence[int], first: int) -> int:
    """The end of the longest row of runs from `first` on that are not much larger than it is."""
    total = sizes[first]
    end = first + 1
    while end < len(sizes) and sizes[end] <= total * limits.RUNS_SIZE_RATIO:
        total += sizes[end]
        end += 1
    return end


def _is_mostly_dead(run: Sequence[SegmentMeta], gc_ts: int) -> bool:
    """True if the oldest run has many deletions that no snapshot can see behind any more."""
    rows = sum(meta.rows for meta in run)
    dead = sum(meta.tombstones for meta in run if meta.max_ts <= gc_ts)
    return dead * limits.TOMBSTONES_REWRITE_PART > rows
