"""`python -m tests.sim`: runs of the simulator, one process a core.

--seed 7              that run, with all that happens in it
--seeds 1..2000       those runs; ends with 1 if any finds something
--hours 2             runs of ever new seeds for so long
--mutations           breaks each rule of the protocol, and says after how many seeds it shows
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

from tests.sim.faults import KINDS
from tests.sim.mutations import MUTATIONS
from tests.sim.run import WORKLOADS, Config, Report, simulate
from tests.sim.worker import begin_worker, carry_out

MUTATION_SEEDS_MAX: Final = 200
FAILURE_MAX_CHARS: Final = 3000


def commit_id() -> str:
    """The commit that is simulated, `+` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def show(report: Report, commit: str) -> None:
    """What a run that failed has found."""
    print(f"\nseed {report.seed} at {commit}: {report.setup}")
    for failure in report.failures[:5]:
        print(f"  {failure[:FAILURE_MAX_CHARS]}")
    if len(report.failures) > 5:
        print(f"  and {len(report.failures) - 5} more")
    print(f"  again: make sim SEED={report.seed}", flush=True)


def run_one(config: Config) -> int:
    """A run in this process, telling of everything."""
    begin_worker()
    logging.getLogger().setLevel(logging.WARNING)
    report = simulate(config)
    for what, count in report.outcomes.most_common():
        print(f"{count:6} {what}")
    print(
        f"{report.virtual_s:.1f} virtual s in {report.real_s:.1f} s, {report.faults} faults,"
        f" {report.turns} turns, digest {report.digest:08x}"
    )
    if report.failures:
        show(report, commit_id())
    return bool(report.failures)


def run_many(configs: Iterator[Config], jobs: int) -> int:
    """Runs in workers; tells of those that fail, and now and then how it goes."""
    commit = commit_id()
    failed: list[int] = []
    outcomes: Counter[str] = Counter()
    begun = told = time.monotonic()
    runs = faults = 0
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, begin_worker, maxtasksperchild=200) as pool:
        for report, _ in pool.imap_unordered(carry_out, ((config, "") for config in configs)):
            runs += 1
            faults += report.faults
            outcomes += Counter({k: v for k, v in report.outcomes.items() if " " not in k})
            if report.failures:
                failed.append(report.seed)
                show(report, commit)
            if time.monotonic() > told + 60:
                told = time.monotonic()
                print(f"{runs} runs, {len(failed)} failed", flush=True)
    spent = time.monotonic() - begun
    print(
        f"{runs} runs at {commit} in {spent:.0f} s: {len(failed)} failed {sorted(failed)[:20]};"
        f" {faults} faults; transactions: {dict(outcomes.most_common())}"
    )
    return bool(failed)


def run_mutations(names: list[str], jobs: int) -> int:
    """How many seeds it takes to notice each mutation."""
    missed = 0
    context = multiprocessing.get_context("spawn")
    for name in names:
        begun = time.monotonic()
        doc = (MUTATIONS[name].__doc__ or "").strip()
        work = ((Config(seed), name) for seed in range(1, MUTATION_SEEDS_MAX + 1))
        with context.Pool(jobs, begin_worker) as pool:
            for report, _ in pool.imap(carry_out, work):
                if report.failures:
                    first = report.failures[0].split("\n")[0][:150]
                    spent = time.monotonic() - begun
                    print(f"{name}: noticed with seed {report.seed} in {spent:.0f} s: {first}")
                    break
            else:
                print(f"{name}: NOT noticed within {MUTATION_SEEDS_MAX} seeds: {doc}")
                missed += 1
            pool.terminate()
        sys.stdout.flush()
    return bool(missed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.sim", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="1..100", help="from..to")
    parser.add_argument("--hours", type=float)
    parser.add_argument("--transactions", type=int, default=1000)
    parser.add_argument("--workloads", default="", help=", ".join(WORKLOADS))
    parser.add_argument("--faults", help="none, or some of: " + ", ".join(KINDS))
    parser.add_argument("--level", default="", help="of transactions that write; any by default")
    parser.add_argument("--mutations", nargs="?", const="all", help="all, or the names of some")
    parser.add_argument("--quiet", action="store_true", help="with --seed: only what came of it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    names = tuple(filter(None, options.workloads.split(",")))
    kinds = None
    if options.faults is not None:
        kinds = tuple(kind for kind in options.faults.split(",") if kind in KINDS)

    def config(seed: int) -> Config:
        return Config(seed, options.transactions, names, kinds, options.level)

    if options.mutations:
        chosen = list(MUTATIONS) if options.mutations == "all" else options.mutations.split(",")
        return run_mutations(chosen, options.jobs)
    if options.seed is not None:
        one = config(options.seed)
        one.verbose = not options.quiet
        return run_one(one)
    if options.hours is not None:
        end = time.monotonic() + options.hours * 3600
        first = int(time.time()) * 1000

        def seeds() -> Iterator[Config]:
            seed = first
            while time.monotonic() < end:
                yield config(seed)
                seed += 1

        return run_for(seeds(), options.jobs)
    low, _, high = options.seeds.partition("..")
    return run_many((config(seed) for seed in range(int(low), int(high or low) + 1)), options.jobs)


def run_for(configs: Iterator[Config], jobs: int) -> int:
    """`run_many` for an endless supply: a pool would draw all of it at once."""
    failed = 0
    batch: list[Config] = []
    for config in configs:
        batch.append(config)
        if len(batch) == 50 * jobs:
            failed |= run_many(iter(batch), jobs)
            batch = []
    return failed | (run_many(iter(batch), jobs) if batch else 0)


if __name__ == "__main__":
    sys.exit(main())
