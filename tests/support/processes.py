"""Small helpers about processes and ports that the test servers share."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

POSTGRES_BIN_GLOBS = ("/usr/lib/postgresql/*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/bin")


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def postgres_program(name: str) -> str:
    """The path of one of PostgreSQL's programs; a clear error if it is not installed."""
    for pattern in POSTGRES_BIN_GLOBS:
        for directory in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if (directory / name).exists():
                return str(directory / name)
    found = shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed (Debian: postgresql, postgresql-contrib)")
    return found


def children_of(parent: int) -> list[int]:
    """The processes whose parent is `parent`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue  # it ended meanwhile
            if int(stat.rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(entry.name))
    return sorted(found)


def command_of(pid: int) -> str:
    """The command line of a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def run(
    command: Sequence[str], timeout_seconds: float = 120, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a client program and keeps what it wrote; never raises for its exit code."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PG")
    } | {"PGCONNECT_TIMEOUT": "10", "PGOPTIONS": "", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        list(command),
        capture_output=True,
        text=True,
        input=stdin or "",
        timeout=timeout_seconds,
        env=environment,
        check=False,
    )
