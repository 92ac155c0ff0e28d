"""What the log and the manifest have in common: errors of the system, and telling who waits.

It must not decide what an error means for a file.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from shardb.errors import StorageError

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


def storage_error(what: str, error: OSError) -> StorageError:
    """The error of the system as a client meets it: 53100 if the disk is full, else 58030."""
    sqlstate = "53100" if error.errno in NO_ROOM else "58030"
    return StorageError(sqlstate, f"could not {what}: {error.strerror}")


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
