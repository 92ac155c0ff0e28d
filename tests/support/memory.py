"""How much memory of its own a process takes, watched from outside; and data to fill it with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psycopg

from tests.support.cluster import Cluster

WATCH_SECONDS = 0.05
ROW_BYTES = 130
BATCH_ROWS = 5000


def anonymous_bytes(pid: int) -> int:
    """A process's memory that is no file's (RssAnon); 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0].split()[1]) * 1024 if found else 0


class Peaks:
    """The most that one of a cluster's processes has taken while this is entered."""

    def __init__(self, cluster: Cluster, module: str, number: int = 0) -> None:
        self._pid = cluster.child(module, number)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.first_bytes = anonymous_bytes(self._pid)
        self.bytes = self.first_bytes

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __repr__(self) -> str:
        return f"{self.first_bytes >> 20} MiB at first, {self.bytes >> 20} MiB at most"

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_SECONDS):
            self.bytes = max(self.bytes, anonymous_bytes(self._pid))


def copy_numbered(connection: psycopg.Connection[Any], megabytes: int, split: str = "") -> int:
    """Makes a table `numbered` with so much text; the number of rows, whose ids begin with 0."""
    options = f" WITH (split_at = '{split}')" if split else ""
    connection.execute(
        f"CREATE TABLE numbered (id int PRIMARY KEY, grp int, padding text){options}"
    )
    rows = megabytes * 2**20 // ROW_BYTES
    padding = "p" * (ROW_BYTES - 20)
    with connection.cursor().copy("COPY numbered FROM STDIN") as writer:
        for first in range(0, rows, BATCH_ROWS):
            numbers = range(first, min(first + BATCH_ROWS, rows))
            writer.write("".join(f"{n}\t{n % 100}\t{padding}{n}\n" for n in numbers))
    return rows
