"""`shardb start`: one process that owns the metadata store and keeps the cluster's processes alive.

It holds no data path. A child that dies is started again with a growing delay, and that is said;
children die with the supervisor (PR_SET_PDEATHSIG), so that a killed one leaves nothing behind.
Stopping goes from the client's door inwards: coordinator, shards, metadata.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shardb import limits
from shardb.datadir import ClusterInfo, DataDirectory, DirectoryError
from shardb.errors import SqlError
from shardb.meta import schema
from shardb.meta.descriptors import Node
from shardb.meta.embedded import EmbeddedStore
from shardb.meta.service import MetaService
from shardb.meta.store import Delete

DEFAULT_SHARDS: Final = 2
DEFAULT_PORT: Final = 5433
DEFAULT_LISTEN: Final = "127.0.0.1"
SHARDS_MAX: Final = 256
READY_TIMEOUT_SECONDS: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 10.0
RESTART_SECONDS: Final = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0)
HEALTHY_AFTER_SECONDS: Final = 10.0
FAILED_STARTS_MAX: Final = 3
READY_POLL_SECONDS: Final = 0.02
PR_SET_PDEATHSIG: Final = 1
SSL_REQUEST: Final = struct.pack(">II", 8, 80877103)


class StartError(Exception):
    """The cluster cannot start; the message is one line for the user."""


@dataclass(frozen=True)
class Options:
    """What `shardb start` was asked for; `shards` 0 means "as many as the directory has, or 2"."""

    data: Path
    shards: int = 0
    port: int = DEFAULT_PORT
    listen: str = DEFAULT_LISTEN
    memory_bytes: int = 0  # of all processes together; 0 is half of the machine's
    gc_ttl_ms: int = limits.GC_TTL_MS

    def process_memory_bytes(self, shards: int) -> int:
        """The part of one of `shards` and a coordinator. `StartError` if it is too little."""
        total = self.memory_bytes
        if not total:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
        part = total // (shards + 1)
        if part < limits.MEMORY_MIN_BYTES:
            least = limits.MEMORY_MIN_BYTES * (shards + 1) // limits.MIB
            raise StartError(f"{shards} shards need --memory {least}MiB at least")
        return part

    @property
    def url(self) -> str:
        """Where clients connect."""
        anywhere = self.listen in ("0.0.0.0", "::", "")
        host = "127.0.0.1" if anywhere else self.listen
        if ":" in host:
            host = f"[{host}]"
        return f"postgresql://shardb@{host}:{self.port}/shardb"


def say(message: str) -> None:
    """One line to the user."""
    print(f"shardb: {message}", file=sys.stderr, flush=True)


def check_port(listen: str, port: int) -> None:
    """Raises `StartError` if nothing could listen at this address."""
    try:
        found = socket.getaddrinfo(listen or None, port, 0, socket.SOCK_STREAM, 0, 1)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(f"cannot listen on {listen}:{port}: {reason}") from error


def _die_with(parent: int) -> None:
    """Runs in the child before exec: the kernel kills it when the supervisor is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class Child:
    """One supervised process. Invariant: between `start` and `stop` it is running or about to."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._arguments = tuple(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.failed_starts = 0
        self.ready = False

    @property
    def pid(self) -> int:
        """The present process, 0 if there is none right now."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts the process and keeps it running."""
        self._task = asyncio.get_running_loop().create_task(self._keep_running())

    async def stop(self) -> None:
        """Asks the process to end, and ends it if it does not."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_TIMEOUT_SECONDS)
            except TimeoutError:
                say(f"{self.name} does not stop, killing it")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _keep_running(self) -> None:
        delay = 0
        while not self._stopping:
            started = time.monotonic()
            code = await self._run_once()
            if self._stopping:
                return
            if time.monotonic() - started > HEALTHY_AFTER_SECONDS:
                delay = 0
            if not self.ready:
                self.failed_starts += 1
            pause = RESTART_SECONDS[min(delay, len(RESTART_SECONDS) - 1)]
            delay += 1
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended ({code})"
            say(f"{self.name} {how}, starting it again in {pause} s")
            await asyncio.sleep(pause)

    async def _run_once(self) -> int:
        parent = os.getpid()
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parent.parent)
        known = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{known}" if known else root
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _die_with(parent),
        )
        return await self._process.wait()


class Supervisor:
    """A running cluster on one data directory."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stop = asyncio.Event()
        self._children: list[Child] = []

    def request_stop(self) -> None:
        """Ends `run` cleanly."""
        self._stop.set()

    async def run(self) -> None:
        """Starts everything, says when it is ready, and serves until asked to stop."""
        directory = DataDirectory(self._options.data)
        try:
            shards = self._shard_count(directory)
            check_port(self._options.listen, self._options.port)
            store = EmbeddedStore(directory.meta_path)
            try:
                await self._serve(directory, store, shards)
            finally:
                await store.close()
        finally:
            directory.close()

    def _shard_count(self, directory: DataDirectory) -> int:
        existing, wanted = directory.node_count(), self._options.shards
        if wanted and wanted < existing:
            raise StartError(
                f"{directory.path} holds data of {existing} shards, cannot start with {wanted}"
            )
        return wanted or existing or DEFAULT_SHARDS

    async def _serve(self, directory: DataDirectory, store: EmbeddedStore, shards: int) -> None:
        await self._forget_processes(store)
        socket_path = directory.socket("meta")
        service = MetaService(store, socket_path)
        await service.start()
        meta = f"unix:{socket_path}"
        memory = self._options.process_memory_bytes(shards)
        nodes = [self._node(directory, number, meta, memory) for number in range(1, shards + 1)]
        coordinator = Child(
            "coordinator",
            (
                "coordinator.server",
                "--meta",
                meta,
                "--listen",
                f"{self._options.listen}:{self._options.port}",
                "--memory",
                str(memory),
            ),
        )
        self._children = [*nodes, coordinator]
        info = ClusterInfo(os.getpid(), self._options.url, meta, shards)
        try:
            for node in nodes:
                node.start()
            for number, node in enumerate(nodes, 1):
                await self._wait_registered(store, number, node)
            if not self._stop.is_set():
                coordinator.start()
                await self._wait_accepting(coordinator)
            if not self._stop.is_set():
                directory.publish(info)
                print(f"shardb is ready: {info.url}", flush=True)
            await self._stop.wait()
        finally:
            await coordinator.stop()
            await asyncio.gather(*(node.stop() for node in nodes))
            await service.stop()

    def _node(self, directory: DataDirectory, number: int, meta: str, memory_bytes: int) -> Child:
        path = directory.node_path(number)
        path.mkdir(exist_ok=True)
        return Child(
            f"shard {number}",
            (
                "shardb.node",
                "--id",
                str(number),
                "--data",
                str(path),
                "--listen",
                f"unix:{directory.socket(f'node-{number}')}",
                "--meta",
                meta,
                "--memory",
                str(memory_bytes),
                "--gc-ttl-ms",
                str(self._options.gc_ttl_ms),
            ),
        )

    async def _forget_processes(self, store: EmbeddedStore) -> None:
        """Registrations of an earlier run: its processes are gone, for we hold the lock."""
        for prefix in (schema.NODES, schema.COORDINATORS):
            old = [Delete(item.key) for item in (await store.range(prefix)).items]
            if old:
                await store.txn((), old)

    async def _wait_registered(self, store: EmbeddedStore, number: int, node: Child) -> None:
        key = schema.key_of(Node, number)
        end = time.monotonic() + READY_TIMEOUT_SECONDS
        while await store.get(key) is None:
            await self._pause(node, end)
            if self._stop.is_set():
                return
        node.ready = True

    async def _wait_accepting(self, coordinator: Child) -> None:
        end = time.monotonic() + READY_TIMEOUT_SECONDS
        while not await self._accepts():
            await self._pause(coordinator, end)
            if self._stop.is_set():
                return
        coordinator.ready = True

    async def _pause(self, child: Child, end: float) -> None:
        if child.failed_starts >= FAILED_STARTS_MAX:
            raise StartError(f"{child.name} does not start, see its messages above")
        if time.monotonic() > end:
            raise StartError(f"{child.name} is not ready after {READY_TIMEOUT_SECONDS:.0f} s")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), READY_POLL_SECONDS)

    async def _accepts(self) -> bool:
        """True if something that speaks the protocol answers at the client's port."""
        host = self._options.listen
        host = "127.0.0.1" if host in ("0.0.0.0", "") else "::1" if host == "::" else host
        try:
            reader, writer = await asyncio.open_connection(host, self._options.port)
        except OSError:
            return False
        try:
            writer.write(SSL_REQUEST)
            answer = await asyncio.wait_for(reader.read(1), 5)
            return answer in (b"N", b"S")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


def raise_file_limit() -> None:
    """Connections need descriptors: take as many as the system lets us have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run_cluster(options: Options) -> int:
    """Runs a cluster until it is told to stop; the exit code of the command."""
    if not 0 <= options.shards <= SHARDS_MAX:
        say(f"--shards must be between 1 and {SHARDS_MAX}")
        return 2
    raise_file_limit()

    async def serve() -> None:
        supervisor = Supervisor(options)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, supervisor.request_stop)
        await supervisor.run()

    try:
        asyncio.run(serve())
    except (StartError, DirectoryError) as error:
        say(str(error))
        return 1
    except SqlError as error:
        say(error.message)
        return 1
    say("stopped")
    return 0
