"""The data directory, the supervised children, and the one-line errors of `shardb start`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardb import cli, prompt
from shardb.datadir import (
    SOCKET_PATH_MAX_BYTES,
    ClusterInfo,
    DataDirectory,
    DirectoryError,
    read_cluster_info,
)
from shardb.meta.descriptors import Column, Node, Range, Table
from shardb.supervisor import Child, Options

SLEEP = ("timeit", "-n1", "-r1", "import time; time.sleep(60)")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("waited 10 s in vain")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def shardb(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardb", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    path = tmp_path / "data"
    owner = DataDirectory(path)
    with pytest.raises(DirectoryError, match=f"is in use by process {os.getpid()}"):
        DataDirectory(path)
    owner.close()
    DataDirectory(path).close()


def test_newer_damaged_and_foreign_directories_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "data"
    DataDirectory(path).close()
    (path / "FORMAT").write_text("7\n")
    with pytest.raises(DirectoryError, match=r"has format 7, this version reads up to 1"):
        DataDirectory(path)
    (path / "FORMAT").write_text("seven\n")
    with pytest.raises(DirectoryError, match="is damaged"):
        DataDirectory(path)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(DirectoryError, match="not a shardb data directory"):
        DataDirectory(tmp_path / "home")


def test_socket_paths_fit_however_deep_the_directory_is(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    directory = DataDirectory(deep)
    assert len(str(directory.socket("node-256"))) <= SOCKET_PATH_MAX_BYTES
    run = directory.run_path
    directory.close()
    assert not run.exists()


def test_cluster_info_is_there_only_while_it_runs(tmp_path: Path) -> None:
    with pytest.raises(DirectoryError, match="is not a shardb data directory"):
        read_cluster_info(tmp_path)
    directory = DataDirectory(tmp_path)
    with pytest.raises(DirectoryError, match="is starting or stopping"):
        read_cluster_info(tmp_path)
    info = ClusterInfo(1, "postgresql://x", "unix:/x", 2)
    directory.publish(info)
    assert read_cluster_info(tmp_path) == info
    directory.close()
    with pytest.raises(DirectoryError, match="no cluster is running"):
        read_cluster_info(tmp_path)


def test_a_killed_child_is_started_again_and_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        child = Child("sleeper", SLEEP)
        child.start()
        await until(lambda: child.pid != 0)
        first = child.pid
        os.kill(first, signal.SIGKILL)
        await until(lambda: child.pid not in (0, first))
        second = child.pid
        await child.stop()
        assert not alive(second)

    asyncio.run(scenario())
    assert "shardb: sleeper was killed by SIGKILL, starting it again" in capfd.readouterr().err


def test_children_die_with_their_supervisor() -> None:
    program = (
        "import asyncio\n"
        "from shardb.supervisor import Child\n"
        "async def main():\n"
        f"    child = Child('sleeper', {SLEEP!r})\n"
        "    child.start()\n"
        "    while not child.pid: await asyncio.sleep(0.01)\n"
        "    print(child.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    asyncio.run(until(lambda: not alive(child)))


def test_start_errors_are_one_line(tmp_path: Path) -> None:
    owner = DataDirectory(tmp_path / "used")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        results = [
            shardb("start", "--data", str(tmp_path / "used")),
            shardb("start", "--data", str(tmp_path / "free"), "--port", port),
            shardb("start", "--data", "/proc/nowhere"),
        ]
    owner.close()
    (tmp_path / "used" / "FORMAT").write_text("9\n")
    results.append(shardb("start", "--data", str(tmp_path / "used")))
    (tmp_path / "used" / "FORMAT").write_text("1\n")
    (tmp_path / "used" / "node-3").mkdir()
    results.append(shardb("start", "--data", str(tmp_path / "used"), "--shards", "2"))
    expected = ["is in use", "Address already in use", "cannot use", "has format 9", "of 3 shards"]
    for result, part in zip(results, expected, strict=True):
        assert result.returncode == 1, result
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        assert part in result.stderr


def test_bad_options_are_usage_errors() -> None:
    for arguments in (["--port", "70000"], ["--shards", "0"], ["--shards", "many"]):
        result = shardb("start", *arguments)
        assert result.returncode == 2
        assert "expected a" in result.stderr


def test_status_without_a_cluster(tmp_path: Path) -> None:
    result = shardb("status", "--data", str(tmp_path))
    assert (result.returncode, result.stdout) == (1, "")
    assert "is not a shardb data directory" in result.stderr


def test_status_names_shards_and_tables() -> None:
    info = ClusterInfo(7, "postgresql://shardb@127.0.0.1:5433/shardb", "unix:/m", 2)
    table = Table(1, "orders", 5, (Column(1, "id", 3),), (0,))
    ranges = [Range(1, 5, b"", b"m", 1, 1, (1,), (1,)), Range(2, 5, b"m", b"", 1, 2, (2,), (2,))]
    text = cli.describe(info, {1: Node(1, "unix:/n1")}, [table], ranges)
    assert "shard 1: up, 1 ranges, unix:/n1" in text
    assert "shard 2: down" in text
    assert "public.orders: 2 ranges on shards 1, 2" in text


def test_urls_are_connectable() -> None:
    assert Options(Path("x")).url == "postgresql://shardb@127.0.0.1:5433/shardb"
    assert Options(Path("x"), listen="0.0.0.0", port=7).url.endswith("@127.0.0.1:7/shardb")
    assert Options(Path("x"), listen="::1", port=7).url.endswith("@[::1]:7/shardb")


def test_the_plain_prompt_prints_aligned_columns() -> None:
    text = prompt._table(["id", "name"], [["1", "a"], ["10", "beta"]])
    assert text == ["id | name", "---+-----", "1  | a", "10 | beta"]
