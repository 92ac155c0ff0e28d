"""What a test needs of a server under test, be it shardb or the PostgreSQL it is compared with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import psycopg

from tests.support.processes import postgres_program, run


class Server:
    """A running server. `url` is a libpq connection URL."""

    name = ""
    url = ""

    def connect(self, **options: Any) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection in autocommit mode unless told otherwise."""
        return psycopg.connect(self.url, **({"autocommit": True, "connect_timeout": 10} | options))

    def psql(
        self, *arguments: str, stdin: str | None = None, timeout_seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Runs psql without start-up file, stopping at the first error."""
        program = postgres_program("psql")
        command = [program, self.url, "-X", "-v", "ON_ERROR_STOP=1", *arguments]
        return run(command, timeout_seconds, stdin)

    def pgbench(
        self, *arguments: str, timeout_seconds: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """Runs pgbench against the server."""
        return run([postgres_program("pgbench"), *arguments, self.url], timeout_seconds)

    def log_text(self) -> str:
        """What the server has written so far, for failure messages."""
        path = self.log_path
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def log_path(self) -> Path:
        """The file the server's output goes to."""
        raise NotImplementedError
