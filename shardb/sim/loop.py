"""Virtual time: one thread that runs the event loops of many simulated processes by turns.

A `World` knows when each process has something to do, and jumps to the next such moment. Each life
of a process has a `ProcessLoop`, which is what its code finds as the running event loop: its tasks,
timers and connections are on it, and end with it at once when the process is killed. A turn is
asyncio's: what is due becomes ready, and all that was ready when the turn began is called, in
order. How long a turn takes, and so how the turns of processes interleave, is the seed's choice.

Invariants: what happens depends on the seed alone, and on no address, hash or real time; nothing
that a dead process's code still does (its coroutines are closed some time) has any effect.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
import zlib
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Final

log = logging.getLogger("shardb.sim")

MS: Final = 1_000_000  # nanoseconds
SECOND: Final = 1000 * MS
TURN_MAX_NS: Final = 20_000
LONG_TURN_PART: Final = 0.002  # of the turns take up to LONG_TURN_MAX_NS
LONG_TURN_MAX_NS: Final = 5 * MS
JOB_MIN_NS: Final = 20_000
JOB_MAX_NS: Final = 2 * MS

Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


class Crash(BaseException):
    """The process is gone; nobody may handle that."""


class World:
    """Time, chance and the processes' turns."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ns = 0
        self.digest = 0  # of all that has happened
        self.turns = 0
        self.problems: list[str] = []  # exceptions that nobody handled: bugs
        self.on_event: Callable[[str], None] | None = None
        self._due: list[tuple[int, int, ProcessLoop]] = []
        self._last = 0
        self.running: ProcessLoop | None = None

    def number(self) -> int:
        """Larger than all before: what is due at the same time happens in this order."""
        self._last += 1
        return self._last

    def note(self, event: str, data: bytes = b"") -> None:
        """Something has happened that another run of the same seed has to repeat."""
        self.digest = zlib.crc32(b"%d %b " % (self.now_ns, event.encode()), self.digest)
        self.digest = zlib.crc32(data, self.digest)
        if self.on_event is not None:
            self.on_event(event)

    def run(self, done: Callable[[], bool], until_ns: int) -> bool:
        """Runs until `done` or `until_ns`; True if done."""
        due = self._due
        previous = asyncio._get_running_loop()
        _set_running_loop(None)
        try:
            while not done():
                if not due or due[0][0] > until_ns:
                    self.now_ns = until_ns
                    return False
                at_ns, _, process = heapq.heappop(due)
                if process.turn_ns != at_ns or process.dead:
                    continue  # another turn has come before
                self.now_ns = at_ns
                self.turns += 1
                process.turn_ns = -1
                process.take_turn()
            return True
        finally:
            _set_running_loop(previous)

    def plan(self, process: ProcessLoop, at_ns: int) -> None:
        """Gives a process a turn at this time, if it has none before."""
        at_ns = max(at_ns, process.busy_ns, self.now_ns)
        if process.turn_ns < 0 or at_ns < process.turn_ns:
            process.turn_ns = at_ns
            heapq.heappush(self._due, (at_ns, self.number(), process))

    def turn_takes_ns(self) -> int:
        """How long a turn keeps its process busy."""
        chance = self.rng.random()
        if chance < LONG_TURN_PART:
            return int(chance / LONG_TURN_PART * LONG_TURN_MAX_NS)
        return 1 + int(chance * TURN_MAX_NS)


class ProcessLoop(asyncio.AbstractEventLoop):
    """The event loop of one life of a process. `rate` is how fast its monotonic clock goes."""

    def __init__(self, world: World, name: str, network: Any, rate: float = 1.0) -> None:
        self.world = world
        self.name = name
        self.network = network
        self.rate = rate
        self.dead = False
        self.turn_ns = -1  # of the next turn, -1 if none is planned
        self.busy_ns = 0  # no turn before
        self.on_crash: Callable[[], None] | None = None
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[int, int, asyncio.Handle]] = []
        self._handler: Handler | None = None
        self._in_turn = False

    # --- turns

    def take_turn(self) -> None:
        """Calls what is due."""
        world, timers, ready = self.world, self._timers, self._ready
        while timers and timers[0][0] <= world.now_ns:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                ready.append(handle)
        self._in_turn = True
        world.running = self
        _set_running_loop(self)
        try:
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle.cancelled():
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]
                except (KeyboardInterrupt, SystemExit):
                    raise
                except Crash:
                    self.crash()
                except BaseException as error:
                    name = getattr(handle._callback, "__qualname__", "a callback")  # type: ignore[attr-defined]
                    self.call_exception_handler(
                        {"message": f"{name} failed", "exception": error, "handle": handle}
                    )
                if self.dead:
                    break
        finally:
            self._in_turn = False
            world.running = None
            _set_running_loop(None)
        if self.dead:
            self._bury()
            return
        self.busy_ns = max(self.busy_ns, world.now_ns + world.turn_takes_ns())
        self._plan()

    def _plan(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if self._ready:
            self.world.plan(self, self.busy_ns)
        elif self._timers:
            self.world.plan(self, self._timers[0][0])

    def pause(self, until_ns: int) -> None:
        """Keeps the process from running, as SIGSTOP does, while time and the world go on."""
        self.busy_ns = max(self.busy_ns, until_ns)

    def crash(self) -> None:
        """Kills the process: from here on nothing that its code does has an effect."""
        if self.dead:
            return
        self.dead = True
        self._ready.clear()
        self._timers.clear()
        if self.on_crash is not None:
            self.on_crash()
        if not self._in_turn:
            self._bury()

    def _bury(self) -> None:
        """Closes what was under way, so that it does not turn up in another process's time."""
        previous = asyncio._get_running_loop()
        _set_running_loop(self)
        try:
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
        finally:
            _set_running_loop(previous)
        self._ready.clear()

    def post(self, at_ns: int, callback: Callable[..., object], *args: Any) -> None:
        """Has something from outside happen at this time of the world's."""
        if self.dead:
            return
        handle = asyncio.Handle(callback, args, self)
        heapq.heappush(self._timers, (at_ns, self.world.number(), handle))
        if not self._in_turn:
            self.world.plan(self, at_ns)

    # --- the event loop as asyncio's users know it

    def time(self) -> float:
        return self.world.now_ns * self.rate / SECOND

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
            if not self._in_turn:
                self.world.plan(self, self.world.now_ns)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.dead:
            at_ns = max(int(when / self.rate * SECOND), self.world.now_ns)
            heapq.heappush(self._timers, (at_ns, self.world.number(), handle))
            if not self._in_turn:
                self.world.plan(self, at_ns)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Runs it here, a while later; the future learns of it some time after that."""
        future = self.create_future()

        def work() -> None:
            try:
                result, error = func(*args), None
            except Exception as failure:
                result, error = None, failure
            self.post(self._job_ends_ns(), tell, result, error)

        def tell(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.post(self._job_ends_ns(), work)
        return future

    def _job_ends_ns(self) -> int:
        return self.world.now_ns + self.world.rng.randrange(JOB_MIN_NS, JOB_MAX_NS)

    def set_exception_handler(self, handler: Handler | None) -> None:
        self._handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = f"{self.name}: {context.get('message')}: {type(error).__name__}: {error}"
        log.error(text, exc_info=error)
        self.world.problems.append(text)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.dead:
            return
        if self._handler is None:
            self.default_exception_handler(context)
            return
        try:
            self._handler(self, context)
        except Crash:
            self.crash()

    # --- the network

    async def create_connection(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str = "",
        port: int = 0,
        **options: Any,
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        found: tuple[asyncio.Transport, asyncio.BaseProtocol] = await self.network.connect(
            self, f"{host}:{port}", protocol_factory
        )
        return found

    async def create_unix_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: str, **options: Any
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        found: tuple[asyncio.Transport, asyncio.BaseProtocol] = await self.network.connect(
            self, path, protocol_factory
        )
        return found

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str = "",
        port: int = 0,
        **options: Any,
    ) -> Any:
        return self.network.listen(self, f"{host}:{port}", protocol_factory)

    async def create_unix_server(  # type: ignore[override]
        self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: str, **options: Any
    ) -> Any:
        return self.network.listen(self, path, protocol_factory)
