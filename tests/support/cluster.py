"""Runs `shardb start` for tests: on a free port, in a temporary directory, with kill -9 at hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import children_of, command_of, free_port, run
from tests.support.server import Server

START_TIMEOUT_SECONDS = 40
STOP_TIMEOUT_SECONDS = 40
ROOT = Path(__file__).resolve().parent.parent.parent


class Cluster(Server):
    """A cluster of `shards` shard processes on `directory`. Use as a context manager.

    `arguments` are further ones of `shardb start`; `limits` are other values of bounds.
    """

    name = "shardb"

    def __init__(
        self,
        directory: Path,
        shards: int = 2,
        arguments: Sequence[str] = (),
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self.directory = directory
        self.shards = shards
        self._arguments = tuple(arguments)
        self._limits = dict(limits or {})
        self.port = free_port()
        self.url = f"postgresql://shardb@127.0.0.1:{self.port}/shardb"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.stop()

    @property
    def log_path(self) -> Path:
        return self.directory / "cluster.log"

    @property
    def pid(self) -> int:
        """The supervisor."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts the cluster and waits until it is ready; its output goes to `log_path`."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        offset = len(self.log_text())
        command = [sys.executable, "-m", "shardb", "start", "--port", str(self.port)]
        command += ["--shards", str(self.shards), "--data", str(self.directory / "data")]
        command += self._arguments
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        if self._limits:
            environment["PYTHONPATH"] += f":{ROOT / 'tests' / 'support' / 'small_limits'}"
            environment["SHARDB_TEST_LIMITS"] = json.dumps(self._limits)
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )
        end = time.monotonic() + START_TIMEOUT_SECONDS
        while "shardb is ready: " not in self.log_text()[offset:]:
            code = self._process.poll()
            if code is not None or time.monotonic() > end:
                what = "was too slow" if code is None else f"ended with exit code {code}"
                self.kill_all()
                raise RuntimeError(f"shardb start {what}:\n{self.log_text()[offset:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends the cluster with SIGTERM; fails if that leaves a process or a bad exit code."""
        assert self._process is not None
        children = children_of(self.pid)
        self._process.terminate()
        try:
            code = self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise RuntimeError(f"shardb does not stop:\n{self.log_text()}") from None
        self._process = None
        left = [pid for pid in children if command_of(pid)]
        assert code == 0, f"exit code {code}:\n{self.log_text()}"
        assert not left, f"processes left over: {left}"

    def status(self) -> str:
        """What `shardb status` prints."""
        command = [sys.executable, "-m", "shardb", "status", "--data", str(self.directory / "data")]
        return run(command).stdout

    def kill_all(self) -> None:
        """kill -9 of every process at once, the supervisor first so that it restarts nothing."""
        assert self._process is not None
        children = children_of(self.pid)
        self._process.kill()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # it died with its supervisor
        self._process.wait()
        self._process = None
        end = time.monotonic() + 10
        while any(command_of(pid) for pid in children) and time.monotonic() < end:
            time.sleep(0.01)

    def child(self, module: str, number: int = 0) -> int:
        """The pid of the coordinator (`coordinator.server`) or of a shard (`shardb.node`)."""
        for pid in children_of(self.pid):
            command = command_of(pid)
            if f"-m {module} " in command and (not number or f"--id {number} " in command):
                return pid
        raise RuntimeError(f"no child runs {module}")

    def kill_child(self, module: str, number: int = 0) -> None:
        """kill -9 of one child, which the supervisor then starts again."""
        os.kill(self.child(module, number), signal.SIGKILL)
