"""Row programs: one compiled statement on one table, run against its runs.

Arguments common to the methods are described at `Program`. Errors are `coreerror.CoreError`.
"""

from collections.abc import Mapping

from shardb._core.exprcompile import OPERATORS as OPERATORS
from shardb._core.exprcompile import supported as supported
from shardb._core.rowspec import CompiledSpec
from shardb._core.runs import Runs

class Program(CompiledSpec):
    """A compiled statement that runs: `Program(ProgramSpec, Table)`.

    `params` is a row of `param_layout`; `formats` one byte an output column, one for all or none;
    `overlay` maps own writes' keys to rows or None; `low`, `high` are the range's bounds (None or
    empty: unbounded); `ts` is the snapshot, 2**64 - 1 for the newest versions.
    """

    def select(
        self,
        runs: Runs,
        ts: int,
        params: bytes,
        formats: bytes,
        overlay: Mapping[bytes, bytes | None] | None = None,
        low: bytes | None = None,
        high: bytes | None = None,
    ) -> tuple[bytes, int, int]: ...
    def candidates(
        self,
        runs: Runs,
        ts: int,
        params: bytes,
        overlay: Mapping[bytes, bytes | None] | None = None,
        low: bytes | None = None,
        high: bytes | None = None,
    ) -> list[bytes]: ...
    def matches(self, row: bytes, params: bytes) -> bool: ...
    def update(self, row: bytes, params: bytes) -> tuple[bytes, bytes] | None: ...
    def returning(self, row: bytes, params: bytes, formats: bytes) -> bytes: ...
    def insert(
        self, params: bytes, low: bytes | None = None, high: bytes | None = None
    ) -> list[tuple[bytes, bytes]]: ...
    def upsert(self, row: bytes, excluded: bytes, params: bytes) -> bytes | None: ...
