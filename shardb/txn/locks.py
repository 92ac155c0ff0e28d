"""The row locks of one node: shared or exclusive, first come first served.

Owners are transactions' states; anything hashable with a `held` dict serves. A lock is keyed by
(table id, key). There are no timers here: waiting ends by grant or by `cancel`.

Invariants: an exclusive holder is alone; a request is granted at once only if it conflicts with
neither a holder nor an earlier waiter, but for an upgrade, which goes before the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from shardb import limits
from shardb.errors import SqlError

Key = tuple[int, bytes]


class Owner(Protocol):
    """Who locks: `held` belongs to the lock table, `txn_id` names the transaction."""

    held: dict[Key, bool]
    txn_id: bytes


class Waiter:
    """A request in a queue; `granted` is called once it holds the lock."""

    __slots__ = ("exclusive", "granted", "key", "owner")

    def __init__(
        self, owner: Owner, key: Key, exclusive: bool, granted: Callable[[], None]
    ) -> None:
        self.owner = owner
        self.key = key
        self.exclusive = exclusive
        self.granted = granted


class _Lock:
    __slots__ = ("holders", "queue")

    def __init__(self) -> None:
        self.holders: list[Owner] = []
        self.queue: list[Waiter] = []


DEADLOCK: Final = "deadlock detected"


class LockTable:
    """All row locks of a node. An owner's `held` maps its keys to True where exclusive."""

    def __init__(self) -> None:
        self._locks: dict[Key, _Lock] = {}
        self._waiting: dict[bytes, Waiter] = {}
        self._awaiting: dict[bytes, Owner] = {}

    def __len__(self) -> int:
        return len(self._locks)

    def try_acquire(self, owner: Owner, key: Key, exclusive: bool) -> bool:
        """Takes the lock if nobody is in the way."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = _Lock()
            lock.holders.append(owner)
            owner.held[key] = exclusive
            return True
        held = owner.held.get(key)
        if held is not None:
            if held or not exclusive:
                return True
            if len(lock.holders) > 1:
                return False
            owner.held[key] = True
            return True
        if lock.queue:
            return False
        if lock.holders and (exclusive or lock.holders[0].held[key]):
            return False
        lock.holders.append(owner)
        owner.held[key] = exclusive
        return True

    def wait(self, owner: Owner, key: Key, exclusive: bool, granted: Callable[[], None]) -> Waiter:
        """Queues after a failed `try_acquire`. 40P01 if that closes a circle, 53200 if too long."""
        lock = self._locks[key]
        if len(lock.queue) >= limits.LOCK_WAITERS_MAX:
            raise SqlError("53200", "too many transactions wait for one row")
        waiter = Waiter(owner, key, exclusive, granted)
        upgrade = key in owner.held
        ahead = list(lock.holders)
        if not upgrade:
            ahead += [other.owner for other in lock.queue]
        if self._reaches(ahead, owner):
            raise _deadlock()
        if upgrade:
            lock.queue.insert(0, waiter)
        else:
            lock.queue.append(waiter)
        self._waiting[owner.txn_id] = waiter
        return waiter

    def await_end(self, owner: Owner, other: Owner) -> None:
        """Notes that `owner` waits for the end of `other`, until `awaited`; 40P01 as `wait`."""
        if self._reaches([other], owner):
            raise _deadlock()
        self._awaiting[owner.txn_id] = other

    def awaited(self, owner: Owner) -> None:
        """That wait is over."""
        self._awaiting.pop(owner.txn_id, None)

    def cancel(self, waiter: Waiter) -> list[Callable[[], None]]:
        """Leaves a queue; the grants this makes possible are to be called by the caller."""
        lock = self._locks.get(waiter.key)
        if lock is None or waiter not in lock.queue:
            return []
        lock.queue.remove(waiter)
        self._stop_waiting(waiter)
        return self._grant(waiter.key, lock)

    def release_all(self, owner: Owner) -> list[Callable[[], None]]:
        """Gives up everything an owner holds; the grants are to be called by the caller."""
        grants: list[Callable[[], None]] = []
        self._awaiting.pop(owner.txn_id, None)
        waiter = self._waiting.get(owner.txn_id)
        if waiter is not None and waiter.owner is owner:
            grants += self.cancel(waiter)
        locks = self._locks
        for key in owner.held:
            lock = locks[key]
            if len(lock.holders) == 1 and not lock.queue:
                del locks[key]
                continue
            lock.holders.remove(owner)
            if lock.queue:
                grants += self._grant(key, lock)
            elif not lock.holders:
                del locks[key]
        owner.held = {}
        return grants

    def holders(self, key: Key) -> list[Any]:
        """Who holds a lock now."""
        lock = self._locks.get(key)
        return [] if lock is None else list(lock.holders)

    def first_holder(self, table_id: int, keys: Sequence[bytes], owner: Owner) -> Any | None:
        """Somebody else who holds one of these keys of a table, or None. For many keys."""
        locks = self._locks
        if len(locks) < len(keys):
            held = [key for table, key in locks if table == table_id]
            if not held:
                return None
            wanted = set(keys)
            keys = [key for key in held if key in wanted]
        for key in keys:
            lock = locks.get((table_id, key))
            if lock is not None:
                for holder in lock.holders:
                    if holder is not owner:
                        return holder
        return None

    def _grant(self, key: Key, lock: _Lock) -> list[Callable[[], None]]:
        grants: list[Callable[[], None]] = []
        while lock.queue:
            first = lock.queue[0]
            others = [holder for holder in lock.holders if holder is not first.owner]
            if others and (first.exclusive or others[0].held[key]):
                break
            lock.queue.pop(0)
            if first.owner not in lock.holders:
                lock.holders.append(first.owner)
            first.owner.held[key] = first.exclusive or first.owner.held.get(key, False)
            self._stop_waiting(first)
            grants.append(first.granted)
        if not lock.holders and not lock.queue:
            del self._locks[key]
        return grants

    def _stop_waiting(self, waiter: Waiter) -> None:
        if self._waiting.get(waiter.owner.txn_id) is waiter:
            del self._waiting[waiter.owner.txn_id]

    def _reaches(self, start: list[Owner], target: Owner) -> bool:
        """True if one of `start` waits, in the end, for `target`'s transaction."""
        seen: set[bytes] = set()
        stack = [owner for owner in start if owner is not target]
        while stack:
            owner = stack.pop()
            if owner.txn_id == target.txn_id:
                return True
            if owner.txn_id in seen:
                continue
            seen.add(owner.txn_id)
            awaited = self._awaiting.get(owner.txn_id)
            if awaited is not None:
                stack.append(awaited)
            waiter = self._waiting.get(owner.txn_id)
            if waiter is None:
                continue
            lock = self._locks.get(waiter.key)
            if lock is None:
                continue
            stack += [holder for holder in lock.holders if holder is not waiter.owner]
            for other in lock.queue:
                if other is waiter:
                    break
                stack.append(other.owner)
        return False


def _deadlock() -> SqlError:
    return SqlError(
        "40P01",
        DEADLOCK,
        detail="Transactions of one shard wait for each other's row locks.",
        hint="Run the transaction again.",
    )
