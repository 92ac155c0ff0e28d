"""The storage engine alone, in this process: how it opens, what its background costs, its memory.

    python -m bench.storage reopen|compaction|mixed [--help]

BENCH_DIR chooses the disk (the present directory by default); what is written is removed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import uvloop

from bench.storage import compaction, mixed, reopen

BENCHES = {"compaction": compaction, "mixed": mixed, "reopen": reopen}


def main() -> int:
    """Runs one bench; the exit code."""
    parser = argparse.ArgumentParser(prog="bench.storage", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, module in BENCHES.items():
        module.arguments(
            commands.add_parser(
                name,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(
        prefix="bench-storage-", dir=os.environ.get("BENCH_DIR", ".")
    ) as directory:
        uvloop.run(BENCHES[options.bench].run(options, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
