"""A temporary PostgreSQL: the oracle of differential tests and the other runner in benchmarks."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import free_port, postgres_program, run
from tests.support.server import Server

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "lc_messages": "C",
    "timezone": "UTC",
    "jit": "off",
}


class Postgres(Server):
    """A PostgreSQL with default durability in a directory of its own. A context manager.

    PostgreSQL refuses to run as root: then it runs as the system user `postgres`.
    """

    name = "postgresql"

    def __init__(self, settings: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"postgresql://shardb@127.0.0.1:{self.port}/shardb"
        self._settings = SETTINGS | {"port": str(self.port)} | (settings or {})
        self._directory = Path(tempfile.mkdtemp(prefix="pgtest-"))

    def __enter__(self) -> Postgres:
        data = self._directory / "data"
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self._directory, user.pw_uid, user.pw_gid)
        try:
            initdb = postgres_program("initdb")
            options = ("-U", "shardb", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
            self._run([initdb, "-D", str(data), *options])
            with (data / "postgresql.conf").open("a") as file:
                file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())
            self._control("start")
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        created = self.psql_on("postgres", "CREATE DATABASE shardb")
        assert created.returncode == 0, created.stderr
        return self

    def __exit__(self, *_: object) -> None:
        self._control("stop", "-m", "immediate")
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def log_path(self) -> Path:
        return self._directory / "server.log"

    @property
    def pid(self) -> int:
        """The postmaster."""
        return int((self._directory / "data" / "postmaster.pid").read_text().split()[0])

    def psql_on(self, database: str, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command on another database of this server."""
        url = f"postgresql://shardb@127.0.0.1:{self.port}/{database}"
        return run([postgres_program("psql"), url, "-X", "-c", command])

    def _control(self, action: str, *options: str) -> None:
        data = str(self._directory / "data")
        program = postgres_program("pg_ctl")
        self._run([program, "-D", data, "-w", "-l", str(self.log_path), *options, action])

    def _run(self, command: Sequence[str]) -> None:
        as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        result = run([*as_owner, *command])
        if result.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{result.stdout}{result.stderr}")
