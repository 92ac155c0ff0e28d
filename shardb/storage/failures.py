"""What the log and the manifest have in common: errors of the system, and telling who waits.

It must not decide what an error means for a file.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from shardb._core.coreerror import CoreError
from shardb.errors import SqlError, StorageError

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

OnDurable = Callable[[StorageError | None], None]
Run = Callable[[Callable[[], None], Callable[[None, BaseException | None], None]], None]


def run_now(job: Callable[[], None], done: Callable[[None, BaseException | None], None]) -> None:
    """What `env.Background.run` does, at once and in this thread."""
    try:
        job()
    except OSError as error:
        done(None, error)
    else:
        done(None, None)


def storage_error(what: str, error: BaseException) -> StorageError:
    """What went wrong as a client meets it: 53100 for a full disk, 58030 for what is not known."""
    if isinstance(error, OSError):
        sqlstate = "53100" if error.errno in NO_ROOM else "58030"
        return StorageError(sqlstate, f"could not {what}: {error.strerror}")
    if isinstance(error, SqlError | CoreError):
        return StorageError(error.sqlstate, f"could not {what}: {error.message}")
    return StorageError("58030", f"could not {what}: {error!r}")


def tell(waiting: Iterable[OnDurable], error: StorageError | None) -> None:
    """Calls all callbacks; if some fail, the first one's error is raised when all were called."""
    failure: Exception | None = None
    for on_durable in waiting:
        try:
            on_durable(error)
        except Exception as raised:
            failure = failure or raised
    if failure is not None:
        raise failure
