"""What processes use: CPU seconds and peak memory, read from /proc while something runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.processes import children_of

SAMPLE_SECONDS: Final = 0.02
TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_CPU_FIELDS: Final = slice(11, 15)  # utime, stime and those of children that were waited for


class Usage(NamedTuple):
    """What a group of processes used while it was watched; memory in KiB, of all at one moment."""

    cpu_seconds: float
    rss_peak_kib: int
    anonymous_peak_kib: int


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue  # it ended: its parent has its time
        ticks += sum(map(int, stat.rsplit(")", 1)[1].split()[_CPU_FIELDS]))
    return ticks / TICKS_PER_SECOND


def memory_kib(pids: list[int]) -> tuple[int, int]:
    """(resident, anonymous and resident) memory of processes."""
    found = {"VmRSS": 0, "RssAnon": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(":")
            if name in found:
                found[name] += int(value.split()[0])
    return found["VmRSS"], found["RssAnon"]


def with_children(pid: int) -> list[int]:
    """A process and its children."""
    return [pid, *children_of(pid)]


class Watch:
    """Watches groups of processes by name from its beginning to its end. A context manager.

    A group is a function, for the processes of a server come and go.
    """

    def __init__(self, groups: Mapping[str, Callable[[], list[int]]]) -> None:
        self.usage: dict[str, Usage] = {}
        self._groups = groups
        self._peaks = dict.fromkeys(groups, (0, 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch")
        self._before: dict[str, float] = {}

    def __enter__(self) -> Watch:
        self._before = {name: cpu_seconds(pids()) for name, pids in self._groups.items()}
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for name, pids in self._groups.items():
            used = cpu_seconds(pids()) - self._before[name]
            self.usage[name] = Usage(used, *self._peaks[name])

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for name, pids in self._groups.items():
                rss, anonymous = memory_kib(pids())
                peak = self._peaks[name]
                self._peaks[name] = max(peak[0], rss), max(peak[1], anonymous)
