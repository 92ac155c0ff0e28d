"""The one tree of errors: every error a client can meet has an SQLSTATE and says if it may retry.

SQLSTATEs are PostgreSQL's (manual, appendix A). Code raises `SqlError(SQLSTATE, message, ...)` or a
subclass; shells turn it into an ErrorResponse. An error must never carry a secret or a stack trace.
"""

from __future__ import annotations

from typing import Final

RETRYABLE: Final = frozenset({"40001", "40P01", "53300", "57P03"})


# Messages of 40001. ROW_CHANGED is between shards and coordinators; the rest are PostgreSQL's.
ROW_CHANGED: Final = "row changed"
CONCURRENT_UPDATE: Final = "could not serialize access due to concurrent update"
CONCURRENT_DELETE: Final = "could not serialize access due to concurrent delete"


class SqlError(Exception):
    """An error for the client.

    `position` is the 1-based character offset into the statement's text, or 0 if there is none.
    """

    __slots__ = ("constraint", "detail", "hint", "message", "position", "sqlstate", "where")

    def __init__(
        self,
        sqlstate: str,
        message: str,
        *,
        position: int = 0,
        detail: str = "",
        hint: str = "",
        where: str = "",
        constraint: str = "",
    ) -> None:
        assert len(sqlstate) == 5, sqlstate
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.position = position
        self.detail = detail
        self.hint = hint
        self.where = where
        self.constraint = constraint

    @property
    def retryable(self) -> bool:
        """True if the statement or transaction certainly had no effect and may be run again."""
        return self.sqlstate in RETRYABLE

    def __str__(self) -> str:
        return f"{self.sqlstate}: {self.message}"


class ProtocolError(SqlError):
    """The peer broke the wire protocol (08P01); the connection is closed after it is reported."""

    def __init__(self, message: str) -> None:
        super().__init__("08P01", message)


class StorageError(SqlError):
    """Disk trouble: full (53100), I/O (58030) or data that fails its checksum (XX001)."""


def is_row_changed(error: BaseException) -> bool:
    """True if a write met a row that changed since it was read: the statement is to run again."""
    return isinstance(error, SqlError) and error.message == ROW_CHANGED


def unsupported(what: str, hint: str = "") -> SqlError:
    """What we refuse by name rather than answer differently from PostgreSQL."""
    return SqlError("0A000", f"{what} is not supported", hint=hint)


def internal(message: str) -> SqlError:
    """Our own bug, reported to the client as XX000."""
    return SqlError("XX000", message)
