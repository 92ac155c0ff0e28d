"""A log on a disk in memory, and what its callbacks said."""

from __future__ import annotations

from shardb.env import SystemRng
from shardb.errors import StorageError
from shardb.sim.disk import Disk
from shardb.storage.log import Log
from shardb.storage.logfile import LogRecord


class Bench:
    """The log's one user; records are of range 7 unless it says another."""

    def __init__(self, disk: Disk, file_target_bytes: int = 1 << 20) -> None:
        self.disk = disk
        self.fatal: list[StorageError] = []
        self.replayed: list[LogRecord] = []
        self.outcomes: dict[int, str] = {}
        self.index = 0
        self.log = Log("log", disk, SystemRng(), self.fatal.append, file_target_bytes)
        self.log.recover(self.replayed.append)

    def append(self, payload: bytes, range_id: int = 7, lazy: bool = False) -> int:
        self.index += 1
        index = self.index
        self.log.append(range_id, 1, index, 3, payload, lambda error: self.note(index, error), lazy)
        return index

    def note(self, index: int, error: StorageError | None) -> None:
        assert index not in self.outcomes, "told twice"
        self.outcomes[index] = "durable" if error is None else error.sqlstate

    def run_until(self, index: int) -> str:
        while index not in self.outcomes:
            self.disk.step()
        return self.outcomes[index]

    def payloads(self) -> list[bytes]:
        return [record.payload for record in self.replayed]
