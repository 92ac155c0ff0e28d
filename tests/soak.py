"""`make soak`: what tests/integration/test_storage.py does, for as long as one likes.

Rounds of random statements go on with fresh seeds until the time is over; then a table of ten times
the memory of a shard is written, changed and read while its memory is watched. The seed is printed,
and what fails names it: `make soak ARGS="--seed 4711"` begins with the same statements again.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.differential import SMALL_LIMITS, Differential, Workload
from tests.support.memory import Peaks, copy_numbered
from tests.support.postgres import Postgres
from tests.support.sums import Sums

UNITS = 200
COMPARE_EVERY = 20
KILL_PART = 0.08  # of units, in every other round
SUMS_SECONDS = 40
SUMS_KILLS = 6
BUDGET_MIB = 64


def random_round(directory: Path, postgres: Postgres, seed: int, kills: bool) -> None:
    """Units of one seed on a fresh cluster."""
    choice = random.Random(seed)
    options = ["--memory", "256MiB", "--gc-ttl", "2"]
    with Cluster(directory, arguments=options, limits=SMALL_LIMITS) as cluster:

        def kill() -> None:
            with contextlib.suppress(RuntimeError, ProcessLookupError):  # not up again yet
                cluster.kill_child("shardb.node", choice.choice([1, 2]))

        runs = Differential(cluster, postgres, Workload(seed))
        try:
            for number in range(1, UNITS + 1):
                runs.step(kill if kills and choice.random() < KILL_PART else None)
                if number % COMPARE_EVERY == 0:
                    runs.compare()
        except BaseException:
            print(cluster.log_text())
            raise
        print(f"seed {seed}: {runs.units} units, {runs.kills} kills, {runs.again} run again")
        runs.close()


def sums_round(directory: Path, seed: int) -> None:
    """Clients beside one another, and kill -9 of any process."""
    choice = random.Random(seed)
    victims = (("shardb.node", 1), ("shardb.node", 2), ("coordinator.server", 0))
    with Cluster(directory, arguments=["--memory", "256MiB"], limits=SMALL_LIMITS) as cluster:
        load = Sums(cluster, seed)
        load.start()
        for _ in range(SUMS_KILLS):
            time.sleep(SUMS_SECONDS / SUMS_KILLS)
            with contextlib.suppress(RuntimeError, ProcessLookupError):
                cluster.kill_child(*choice.choice(victims))
        load.stop()
        load.check()
        print(f"sums, seed {seed}: {dict(load.done)}, lost {dict(load.lost)}")


def large_round(directory: Path) -> None:
    """Ten times as much data as a shard may take memory."""
    with (
        Cluster(directory, shards=1, arguments=["--memory", f"{2 * BUDGET_MIB}MiB"]) as cluster,
        cluster.connect() as connection,
        Peaks(cluster, "shardb.node") as peaks,
    ):
        rows = copy_numbered(connection, 10 * BUDGET_MIB)
        print(f"{rows} rows copied: {peaks}")
        for statement in (
            "SELECT count(*), sum(grp), max(id) FROM numbered",
            "UPDATE numbered SET grp = grp + 1 WHERE id < 50000",
            "DELETE FROM numbered WHERE id % 500 = 0",
            "SELECT grp, count(*) FROM numbered GROUP BY grp ORDER BY grp LIMIT 1",
            "SELECT id FROM numbered ORDER BY id DESC LIMIT 3",
        ):
            begun = time.monotonic()
            connection.execute(statement)
            print(f"{time.monotonic() - begun:6.2f} s {statement}: {peaks}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    print(f"seed {options.seed}")
    with tempfile.TemporaryDirectory() as path, Postgres() as postgres:
        seed = options.seed
        while True:
            random_round(Path(path) / str(seed), postgres, seed, kills=bool(seed % 2))
            sums_round(Path(path) / f"sums{seed}", seed)
            seed += 1
            if time.monotonic() > end:
                break
        large_round(Path(path) / "large")


if __name__ == "__main__":
    main()
