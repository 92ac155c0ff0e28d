"""Finds what keeps a loop from turning: how late turns are, and where the long ones were."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from types import FrameType
from typing import Final

BEAT_SECONDS: Final = 0.002
STACK_FRAMES: Final = 6
LONGEST: Final = 3  # turns of which all stacks are kept


class LoopWatch:
    """A context manager around work on the running loop; must be made on it.

    `lags` are how late each turn was, in seconds, and how late without the time that the thread was
    ready to run and other processes ran (Linux tells). `stacks` counts where the loop was when a
    turn had been late for `late_seconds`.
    """

    def __init__(self, late_seconds: float = 0.01) -> None:
        self.lags: list[tuple[float, float]] = []
        self.stacks: Counter[str] = Counter()
        self.longest: list[tuple[float, float, Counter[str]]] = []  # net, whole, where it was
        self._seen: Counter[str] = Counter()  # of the turn under way
        self._late_seconds = late_seconds
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._beat = time.perf_counter()
        self._schedule = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._queued = self._queued_seconds()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)

    def __enter__(self) -> LoopWatch:
        self._beat = time.perf_counter()
        self._tick()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        os.close(self._schedule)

    def _tick(self) -> None:
        if self._over.is_set():
            return
        now, queued = time.perf_counter(), self._queued_seconds()
        lag = max(now - self._beat - BEAT_SECONDS, 0.0)
        net = max(lag - (queued - self._queued), 0.0)
        self.lags.append((lag, net))
        seen, self._seen = self._seen, Counter()
        if seen:
            self.longest = sorted([*self.longest, (net, lag, seen)], key=itemgetter(0))[-LONGEST:]
        self._beat, self._queued = now, queued
        self._loop.call_later(BEAT_SECONDS, self._tick)

    def _queued_seconds(self) -> float:
        """How long this thread has been ready to run and did not, ever."""
        return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9

    def _sample(self) -> None:
        counted = 0.0
        while not self._over.wait(BEAT_SECONDS):
            beat = self._beat
            if time.perf_counter() - beat > self._late_seconds:
                stack = _stack(sys._current_frames()[self._thread_id])
                self._seen[stack or "waits for events, or to run"] += 1
                if stack and beat != counted:
                    counted = beat
                    self.stacks[stack] += 1

    def report(self, most: int = 5) -> None:
        """Prints the lags and the most frequent stacks."""
        for name, lags in zip(
            ("loop late by", "  without waits for a processor"),
            zip(*self.lags, strict=True),
            strict=True,
        ):
            print(f"  {name}: {summary(lags)}")
        for stack, count in self.stacks.most_common(most):
            print(f"    {count} x {stack}")
        for net, lag, seen in reversed(self.longest):
            print(f"    the longest: {net * 1e3:.0f} of {lag * 1e3:.0f} ms")
            for stack, count in seen.most_common(2):
                print(f"      {count} x {stack}")


def summary(seconds: Sequence[float]) -> str:
    """Percentiles in ms."""
    found = sorted(seconds)
    at = [found[int(len(found) * part)] * 1e3 for part in (0.5, 0.99, 0.999)]
    most = found[-1] * 1e3
    return f"p50 {at[0]:.1f}  p99 {at[1]:.1f}  p99.9 {at[2]:.1f}  max {most:.1f} ms"


def _stack(frame: FrameType) -> str:
    """The innermost calls, outermost first; empty if the loop waits for events."""
    found = traceback.extract_stack(frame)[-STACK_FRAMES:]
    if found[-1].name == "run" and found[-1].filename.endswith("runners.py"):
        return ""
    return " > ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno} {f.name}" for f in found)
