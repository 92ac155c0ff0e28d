"""kill -9 in the middle of tpcb-like: what was acknowledged is there, and all sums agree."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.processes import postgres_program
from tests.support.tpcb import Load, check

SCALE = 1
CLIENTS = 6


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that only this test uses, with pgbench's tables."""
    with Cluster(tmp_path) as cluster:
        result = cluster.pgbench("-i", "-s", str(SCALE), "-q")
        assert result.returncode == 0, result.stderr
        assert "pgbench_accounts: 2 ranges on shards 1, 2" in cluster.status(), "one shard only"
        yield cluster


def pgbench_beside(cluster: Cluster) -> subprocess.Popen[bytes]:
    """The unmodified pgbench as further load; the kill ends it."""
    options = ["-n", "-c", "4", "-T", "600", "-M", "prepared", "-s", str(SCALE)]
    return subprocess.Popen(
        [postgres_program("pgbench"), *options, cluster.url],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def test_everything_killed_at_once(own_cluster: Cluster) -> None:
    acknowledged: set[str] = set()
    attempted: set[str] = set()
    for round_number in range(1, 4):
        load = Load(own_cluster, SCALE, CLIENTS, seed=round_number)
        with pgbench_beside(own_cluster) as beside:
            load.start()
            load.wait_acknowledged(150)
            own_cluster.kill_all()
            load.stop()
            beside.kill()
        acknowledged |= load.acknowledged
        attempted |= load.attempted
        own_cluster.start()
        check(own_cluster, acknowledged, attempted)


@pytest.mark.parametrize(
    ("module", "number"),
    [("shardb.node", 1), ("shardb.node", 2), ("coordinator.server", 0)],
    ids=["shard-1", "shard-2", "coordinator"],
)
def test_one_process_killed(own_cluster: Cluster, module: str, number: int) -> None:
    load = Load(own_cluster, SCALE, CLIENTS, seed=10 + number)
    load.start()
    load.wait_acknowledged(100)
    own_cluster.kill_child(module, number)
    load.wait_acknowledged(250)
    load.stop()
    check(own_cluster, load.acknowledged, load.attempted)
    assert "was killed by SIGKILL, starting it again" in own_cluster.log_text()
