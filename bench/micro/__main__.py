"""Runs the micro-benches: `python -m bench.micro` all of them, `... memtable log` those named.

BENCH_DIR chooses the disk of those that write.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

NO_BENCH = {"__main__", "harness"}


def main(wanted: list[str]) -> None:
    names = sorted({found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)])})
    names = [name for name in names if name not in NO_BENCH]
    unknown = set(wanted) - set(names)
    if unknown:
        sys.exit(f"no bench {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for name in wanted or names:
        print(name)
        importlib.import_module(f"bench.micro.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
