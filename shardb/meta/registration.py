"""Keeps a process's registration in the metadata store alive: a lease and the keys bound to it.

The lease counts as valid for its term from *before* the last renewal that succeeded was sent, on a
clock that runs on in suspend (PROTOCOL 8); a process whose lease has run out serves nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from shardb.errors import SqlError
from shardb.meta.store import Put, Store

NODE_LEASE_MS: Final = 5_000
RENEWALS_PER_TERM: Final = 4


def boot_time() -> float:
    """Seconds on a monotonic clock that also counts the time in suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Registration:
    """A lease with keys. `await start()`, then it renews itself until `await stop()`."""

    def __init__(
        self,
        store: Store,
        keys: Sequence[tuple[str, bytes]],
        ttl_ms: int = NODE_LEASE_MS,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._store = store
        self._keys = tuple(keys)
        self._ttl_ms = ttl_ms
        self._clock = clock
        self._lease = 0
        self._valid_until = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def valid(self) -> bool:
        """True while the store certainly still holds the lease."""
        return self._clock() < self._valid_until

    async def start(self) -> None:
        """Registers, and renews in the background from then on."""
        await self._register()
        self._task = asyncio.get_running_loop().create_task(self._renew_forever())

    async def stop(self) -> None:
        """Ends the lease, so that others see at once that we are gone."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._valid_until = 0.0
        if self._lease:
            lease, self._lease = self._lease, 0
            await self._store.revoke_lease(lease)

    async def _register(self) -> None:
        before = self._clock()
        self._lease = await self._store.grant_lease(self._ttl_ms)
        await self._store.txn((), [Put(key, value, self._lease) for key, value in self._keys])
        self._valid_until = before + self._ttl_ms / 1000

    async def _renew_forever(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_ms / 1000 / RENEWALS_PER_TERM)
            try:
                before = self._clock()
                if await self._store.keep_alive(self._lease):
                    self._valid_until = before + self._ttl_ms / 1000
                else:
                    await self._register()
            except SqlError:  # unreachable for now: the lease runs out if it stays so
                continue
