"""The shell of the timestamp oracle: time from the clock, its bound in the metadata store.

Whoever changes `oracle/bound` by compare-and-swap is the oracle. The value names it, so that a swap
whose answer was lost is known for its own; where another coordinator is named, that one has taken
over, and this one issues nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from shardb.env import Clock
from shardb.errors import SqlError
from shardb.meta.schema import ORACLE_BOUND
from shardb.meta.store import Compare, Put, Store
from shardb.txn.oracle import Oracle

ATTEMPTS: Final = 10


class OracleService:
    """Timestamps for one coordinator. `spawn` runs a coroutine in the background.

    `owner` is a name that no other oracle of the store has, then or later.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        owner: str,
    ) -> None:
        self._store = store
        self._owner = owner
        self._wall_ms = clock.wall_ms
        self._spawn = spawn
        self._oracle = Oracle(0)
        self._revision = 0
        self._persisting = False
        self._lost = False

    @property
    def issued(self) -> int:
        """The newest timestamp issued."""
        return self._oracle.issued

    async def start(self) -> None:
        """Takes over from the last oracle: starts above the bound it persisted."""
        for _ in range(ATTEMPTS):
            found = await self._store.get(ORACLE_BOUND)
            self._revision = 0 if found is None else found.mod_revision
            self._oracle = Oracle(0 if found is None else _bound_and_owner(found.value)[0])
            if await self._raise_bound():
                return
        raise SqlError("57P03", "the timestamp oracle could not be taken over")

    def issue(self) -> int:
        """A timestamp larger than all before; 57P03 if the metadata store is away for too long."""
        now_ms = self._wall_ms()
        ts = 0 if self._lost else self._oracle.issue(now_ms)
        if not self._persisting and self._oracle.wanted_bound(now_ms) and not self._lost:
            self._persisting = True
            self._spawn(self._persist())
        if not ts:
            raise SqlError("57P03", "no timestamps: the metadata store cannot be reached")
        return ts

    async def _persist(self) -> None:
        try:
            if not await self._raise_bound():
                await self._take_over_again()
        except SqlError:
            pass  # asked again by the next `issue`
        finally:
            self._persisting = False

    async def _raise_bound(self) -> bool:
        bound = self._oracle.wanted_bound(self._wall_ms())
        if not bound:
            return True
        compare = Compare(ORACLE_BOUND, self._revision)
        value = f"{bound} {self._owner}".encode()
        result = await self._store.txn((compare,), (Put(ORACLE_BOUND, value),))
        if result.succeeded:
            self._revision = result.revision
            self._oracle.persisted(bound)
        return result.succeeded

    async def _take_over_again(self) -> None:
        """After a failed swap: an earlier swap of ours whose answer was lost, or another oracle."""
        found = await self._store.get(ORACLE_BOUND)
        bound, owner = (0, "") if found is None else _bound_and_owner(found.value)
        if found is not None and owner == self._owner:
            self._revision = found.mod_revision
            self._oracle.persisted(bound)
        else:
            self._lost = True


def _bound_and_owner(value: bytes) -> tuple[int, str]:
    """What the store says; it did not name owners once."""
    bound, _, owner = value.decode().partition(" ")
    return int(bound), owner
