"""The one exception `_core` raises: an SQLSTATE, a message and a detail.

`_core` imports nothing of shardb, hence a class of its own; shells turn it into SqlError.
"""

from __future__ import annotations


class CoreError(ValueError):
    """An error for the client, found in compiled code.

    `row` and `column` are the 0-based place in a batch that it was found at, -1 if there is none.
    """

    def __init__(
        self, sqlstate: str, message: str, detail: str = "", row: int = -1, column: int = -1
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.row = row
        self.column = column

    def __str__(self) -> str:
        return f"{self.sqlstate}: {self.message}"
