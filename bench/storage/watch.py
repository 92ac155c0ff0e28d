"""Finds what keeps a loop from turning: how late turns are, and where the long ones were."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections import Counter
from types import FrameType
from typing import Final

BEAT_SECONDS: Final = 0.002
STACK_FRAMES: Final = 6


class LoopWatch:
    """A context manager around work on the running loop; must be made on it.

    `lags` are how late each turn was, in seconds. `stacks` counts where the loop's thread was when a
    turn had been late for `late_seconds`.
    """

    def __init__(self, late_seconds: float = 0.01) -> None:
        self.lags: list[float] = []
        self.stacks: Counter[str] = Counter()
        self._late_seconds = late_seconds
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._beat = time.perf_counter()
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

    def _tick(self) -> None:
        now = time.perf_counter()
        self.lags.append(max(now - self._beat - BEAT_SECONDS, 0))
        self._beat = now
        if not self._over.is_set():
            self._loop.call_later(BEAT_SECONDS, self._tick)

    def _sample(self) -> None:
        seen = 0.0
        while not self._over.wait(BEAT_SECONDS):
            beat = self._beat
            if beat != seen and time.perf_counter() - beat > self._late_seconds:
                seen = beat  # one stack a late turn
                frames = sys._current_frames()
                self.stacks[_stack(frames[self._thread_id])] += 1

    def report(self, most: int = 5) -> None:
        """Prints the lags and the most frequent stacks."""
        lags = sorted(self.lags)
        at = [lags[int(len(lags) * part)] * 1e3 for part in (0.5, 0.99, 0.999)]
        print(
            f"  loop late by: p50 {at[0]:.1f}  p99 {at[1]:.1f}  p99.9 {at[2]:.1f}"
            f"  max {lags[-1] * 1e3:.1f} ms"
        )
        for stack, count in self.stacks.most_common(most):
            print(f"    {count} x {stack}")


def _stack(frame: FrameType) -> str:
    """The innermost calls, outermost first."""
    found = traceback.extract_stack(frame)[-STACK_FRAMES:]
    return " > ".join(f"{f.filename.rsplit('/', 1)[-1]}:{f.lineno} {f.name}" for f in found)
