"""What a range's participant needs of its surroundings: the log, the tablets, random numbers."""

from __future__ import annotations

from typing import Protocol

from shardb.txn.decisions import Done
from shardb.txn.records import Section
from shardb.txn.state import BulkWrites


class Host(Protocol):
    """The range's surroundings."""

    def persist(self, kind: int, payload: bytes, done: Done, lazy: bool = False) -> None:
        """Appends to the range's log; `done` follows, in the order of the appends.

        Nobody waits for a `lazy` one.
        """

    def apply(self, table_id: int, overlay: dict[bytes, bytes | None], commit_ts: int) -> None:
        """Makes rows visible from `commit_ts` on."""

    def apply_section(self, section: Section, commit_ts: int) -> None:
        """The same for framed rows, or for segments."""

    def changed_since(self, table_id: int, low: bytes, high: bytes, ts: int) -> bool:
        """True if a key of `[low, high)` may have a version newer than `ts`."""

    def restore_bulk(self, section: Section) -> BulkWrites | None:
        """What a prepared transaction's section names; None if the table has been dropped."""

    def new_state_id(self) -> int:
        """A random number, not 0."""
