"""The one exception that `_core` raises for data; shells turn it into `shardb.errors.SqlError`."""

from __future__ import annotations


class CoreError(Exception):
    """An error with its SQLSTATE, message and detail, as in `shardb.errors.SqlError`."""

    def __init__(self, sqlstate: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
