"""kill -9 of single processes under contention: nothing is lost and nothing happens twice."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.support import counters
from tests.support.cluster import Cluster

CLIENTS = 6
VICTIMS = (("shardb.node", 1), ("shardb.node", 2), ("coordinator.server", 0))


def run(cluster: Cluster, seed: int, seconds: float, kills: int) -> counters.Increments:
    """A load of `seconds` with so many kills at random times."""
    choice = random.Random(seed)
    load = counters.Increments(cluster, CLIENTS, seed)
    load.start()
    times = sorted(choice.uniform(0.5, seconds) for _ in range(kills))
    begun = time.monotonic()
    for at in times:
        time.sleep(max(0.0, begun + at - time.monotonic()))
        try:
            cluster.kill_child(*choice.choice(VICTIMS))
        except (RuntimeError, ProcessLookupError):
            continue  # not up again yet
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    load.stop()
    return load


@pytest.mark.parametrize("seed", [1, 2])
def test_increments_happen_exactly_once(tmp_path: Path, seed: int) -> None:
    with Cluster(tmp_path) as cluster:
        counters.create(cluster)
        load = run(cluster, seed, seconds=9.0, kills=4)
        assert sum(load.done.values()) > 50
        counters.check(cluster, load)


@pytest.mark.parametrize("parameters", [None, (10,)], ids=["simple", "extended"])
@pytest.mark.parametrize("where", ["id = 1", "id IN (1, 1000001)", "n + 0 = 0 OR id < 5"])
def test_a_cancelled_statement_has_no_effect(
    cluster: Cluster, where: str, parameters: tuple[int] | None
) -> None:
    with cluster.connect() as first, cluster.connect() as second:
        first.execute("DROP TABLE IF EXISTS counters")
        counters.create(cluster)
        with first.transaction():
            first.execute("UPDATE counters SET n = n + 1 WHERE id = 1")
            timer = threading.Timer(0.3, second.cancel)
            timer.start()
            add = "10" if parameters is None else "%s"
            with pytest.raises(psycopg.errors.QueryCanceled):
                second.execute(f"UPDATE counters SET n = n + {add} WHERE {where}", parameters)
            timer.join()
        found = first.execute("SELECT n FROM counters ORDER BY id").fetchall()
        assert found == [(1,), *[(0,)] * 5]


def test_without_crashes_every_statement_succeeds(tmp_path: Path) -> None:
    """READ COMMITTED promises that a statement waits and goes on: no 40001 for the client."""
    with Cluster(tmp_path) as cluster:
        counters.create(cluster)
        load = run(cluster, seed=3, seconds=4.0, kills=0)
        assert not load.refused and not load.perhaps
        counters.check(cluster, load)
