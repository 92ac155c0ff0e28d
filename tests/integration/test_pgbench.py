"""pgbench, unmodified: initialization and its built-in scripts in every protocol, no errors."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.server import Server

SCALE = 2
ACCOUNTS = 100_000 * SCALE


@pytest.fixture(scope="module")
def initialized(server: Server) -> Iterator[Server]:
    result = server.pgbench("-i", "-s", str(SCALE), "-q")
    assert result.returncode == 0, result.stderr
    yield server
    with server.connect() as connection:
        for table in ("accounts", "branches", "history", "tellers"):
            connection.execute(f"DROP TABLE pgbench_{table}")


def run_script(server: Server, script: str, protocol: str, clients: int, transactions: int) -> None:
    options = ["-n", "-b", script, "-M", protocol, "-c", str(clients), "-j", "1"]
    result = server.pgbench(*options, "-t", str(transactions), "-s", str(SCALE))
    assert result.returncode == 0, f"{result.stdout}{result.stderr}{server.log_text()[-2000:]}"
    done = re.search(r"actually processed: (\d+)/(\d+)", result.stdout)
    assert done is not None, result.stdout
    assert int(done[1]) == int(done[2]) == clients * transactions
    assert "number of failed transactions: 0 " in result.stdout
    assert "ERROR" not in result.stderr


def assert_sums_agree(server: Server) -> None:
    with server.connect() as connection:
        sums = connection.execute(
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts),"
            " (SELECT sum(tbalance) FROM pgbench_tellers),"
            " (SELECT sum(bbalance) FROM pgbench_branches),"
            " (SELECT sum(delta) FROM pgbench_history)"
        ).fetchone()
    assert sums is not None
    assert len(set(sums)) == 1, sums


def test_initialization_fills_the_tables(initialized: Server) -> None:
    with initialized.connect() as connection:
        for table, rows in (("accounts", ACCOUNTS), ("branches", SCALE), ("tellers", 10 * SCALE)):
            found = connection.execute(f"SELECT count(*) FROM pgbench_{table}").fetchone()
            assert found == (rows,)
        found = connection.execute("SELECT min(aid), max(aid) FROM pgbench_accounts").fetchone()
        assert found == (1, ACCOUNTS)


@pytest.mark.parametrize("clients", [1, 8, 32])
@pytest.mark.parametrize("protocol", ["simple", "extended", "prepared"])
def test_select_only(initialized: Server, protocol: str, clients: int) -> None:
    run_script(initialized, "select-only", protocol, clients, 800 // clients)


@pytest.mark.parametrize("clients", [1, 8, 32])
@pytest.mark.parametrize("protocol", ["simple", "prepared"])
def test_tpcb_like(initialized: Server, protocol: str, clients: int) -> None:
    run_script(initialized, "tpcb-like", protocol, clients, 320 // clients)
    assert_sums_agree(initialized)


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_simple_update(initialized: Server, clients: int) -> None:
    with initialized.connect() as connection:
        before = connection.execute("SELECT count(*) FROM pgbench_history").fetchone()
        run_script(initialized, "simple-update", "extended", clients, 320 // clients)
        after = connection.execute("SELECT count(*) FROM pgbench_history").fetchone()
        connection.execute("DELETE FROM pgbench_history WHERE delta IS NOT NULL")
        connection.execute("UPDATE pgbench_accounts SET abalance = 0 WHERE abalance <> 0")
        connection.execute("UPDATE pgbench_tellers SET tbalance = 0")
        connection.execute("UPDATE pgbench_branches SET bbalance = 0")
    assert before is not None
    assert after is not None
    assert after[0] == before[0] + 320 // clients * clients
