"""The data directory of a cluster on one machine: its format, its lock, and what lies where.

FORMAT            the format's number, written last when the directory is made
lock              flock'ed by the supervisor; holds its pid
cluster.json      how to reach the running cluster, for `shardb status` and `shardb sql`
meta.db           the metadata store
node-<id>/        one per shard process, owned by it
run/              unix sockets (in a short temporary directory if the path is too long)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

import msgspec

FORMAT: Final = 1
SOCKET_PATH_MAX_BYTES: Final = 107  # sun_path less its terminator
LONGEST_SOCKET_NAME: Final = "coordinator-999.sock"


class DirectoryError(Exception):
    """The directory cannot be used; the message is one line for the user."""


class ClusterInfo(msgspec.Struct, frozen=True):
    """What `cluster.json` says."""

    pid: int
    url: str
    meta: str
    shards: int


class DataDirectory:
    """An open, locked data directory. `close` releases the lock and removes the sockets."""

    def __init__(self, path: Path) -> None:
        """Makes or opens the directory and locks it. Raises `DirectoryError`."""
        self.path = path.absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign()
            self._lock = take_lock(self.path)
        except OSError as error:
            reason = error.strerror or error
            raise DirectoryError(f"cannot use data directory {self.path}: {reason}") from error
        try:
            self._check_format()
            self.run_path = self._make_run_directory()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def meta_path(self) -> Path:
        """The metadata store's file."""
        return self.path / "meta.db"

    def node_path(self, node_id: int) -> Path:
        """The directory of one shard process."""
        return self.path / f"node-{node_id}"

    def socket(self, name: str) -> Path:
        """The path of a unix socket."""
        return self.run_path / f"{name}.sock"

    def node_count(self) -> int:
        """How many shard processes the directory has data of."""
        return max(node_paths(self.path), default=0)

    def publish(self, info: ClusterInfo) -> None:
        """Tells other commands how to reach the cluster."""
        new = self.path / "cluster.json.new"
        new.write_bytes(msgspec.json.encode(info))
        new.replace(self.path / "cluster.json")

    def close(self) -> None:
        """Releases the directory."""
        (self.path / "cluster.json").unlink(missing_ok=True)
        shutil.rmtree(self.run_path, ignore_errors=True)
        os.close(self._lock)

    def _refuse_foreign(self) -> None:
        """A directory with other people's files in it is not ours to write to."""
        names = {entry.name for entry in self.path.iterdir()}
        ours = {"lock", "run", "FORMAT"}
        if names and not names & ours:
            raise DirectoryError(f"{self.path} is not empty and not a shardb data directory")

    def _check_format(self) -> None:
        marker = self.path / "FORMAT"
        if not marker.exists():
            new = self.path / "FORMAT.new"
            with new.open("w") as file:
                file.write(f"{FORMAT}\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(marker)
            return
        text = marker.read_text(errors="replace").strip()
        if not text.isdigit():
            raise DirectoryError(f"{marker} is damaged: expected a number, found {text[:40]!r}")
        if int(text) > FORMAT:
            raise DirectoryError(
                f"data directory {self.path} has format {text}, "
                f"this version reads up to {FORMAT}: use a newer shardb"
            )

    def _make_run_directory(self) -> Path:
        run = self.path / "run"
        if len(os.fsencode(run / LONGEST_SOCKET_NAME)) > SOCKET_PATH_MAX_BYTES:
            return Path(tempfile.mkdtemp(prefix="shardb-"))
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(mode=0o700)
        return run


def take_lock(path: Path) -> int:
    """Locks a data directory until the descriptor is closed or the process ends.

    Raises OSError, and DirectoryError if another process has it.
    """
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        by = f" by process {owner}" if owner else ""
        raise DirectoryError(f"data directory {path} is in use{by}") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def node_paths(path: Path) -> dict[int, Path]:
    """The directories of shard processes in a data directory, by id in ascending order."""
    found = {
        int(entry.name.removeprefix("node-")): entry
        for entry in path.glob("node-*")
        if entry.name.removeprefix("node-").isdigit()
    }
    return dict(sorted(found.items()))


def read_cluster_info(path: Path) -> ClusterInfo:
    """How to reach the cluster that runs on a directory. `DirectoryError` if none does."""
    try:
        lock = os.open(path / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise DirectoryError(f"{path} is not a shardb data directory") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # somebody holds it: it runs
    else:
        raise DirectoryError(f"no cluster is running on {path}")
    finally:
        os.close(lock)
    try:
        return msgspec.json.decode((path / "cluster.json").read_bytes(), type=ClusterInfo)
    except (OSError, msgspec.DecodeError):
        raise DirectoryError(f"the cluster on {path} is starting or stopping") from None
