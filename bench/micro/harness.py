"""How the micro-benches measure and print: the median of some runs, in operations a second.

A bench is a module of this package with a `main()`; nothing else has to be said of it. It prints
lines of `report`, and asserts nothing: what is measured differs between machines and days.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Final

RUNS: Final = 5


def median_seconds(work: Callable[[], object], runs: int = RUNS) -> float:
    """Processor time of one call, after one that warms up: other processes disturb it less."""
    work()
    seconds = []
    for _ in range(runs):
        gc.collect()
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return statistics.median(seconds)


def report(name: str, value: float, unit: str = "/s") -> None:
    """One line; large figures in thousands or millions."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            value /= size
            unit = f"{prefix}{unit}" if unit[0].isalpha() else f" {prefix}{unit}".strip()
            break
    print(f"  {name:<48}{value:>10.2f} {unit}", flush=True)


def measure(name: str, work: Callable[[], object], operations: int, runs: int = RUNS) -> float:
    """Reports and returns operations a second of `work`, which does so many of them."""
    rate = operations / median_seconds(work, runs)
    report(name, rate)
    return rate
