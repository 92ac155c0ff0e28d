"""The servers that integration tests run against, one of each for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cluster import Cluster
from tests.support.postgres import Postgres
from tests.support.server import Server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two shards."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL."""
    with Postgres() as running:
        yield running


@pytest.fixture(scope="session", params=["postgresql", "shardb"])
def server(request: pytest.FixtureRequest) -> Server:
    """Both in turn: what holds for PostgreSQL must hold for shardb."""
    name = "postgres" if request.param == "postgresql" else "cluster"
    running = request.getfixturevalue(name)
    assert isinstance(running, Server)
    return running
