"""The row locks of one node, in the modes of `lockmodes`: first come first served.

Owners are transactions' states; anything hashable with a `held` dict serves. A lock is keyed by
(table id, key). There are no timers here: waiting ends by grant, by `cancel` or as a deadlock's
victim. Circles of waits on one node are found as they close; those over several nodes by
`deadlock.Detector`, from `edges`.

Invariants: no two holders' modes conflict, but where `restore` brought back one as a stronger mode;
a request is granted at once only if it conflicts with neither a holder nor an earlier waiter, but
for an upgrade, which goes before the queue.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, Protocol

from shardb import limits
from shardb.errors import SqlError
from shardb.rpc.messages import WaitEdge
from shardb.txn import advisory, deadlock, ids
from shardb.txn.lockmodes import CONFLICTS, UPDATE

Key = tuple[int, bytes]


class Owner(Protocol):
    """Who locks: `held` belongs to the lock table, `txn_id` names the transaction."""

    held: dict[Key, int]
    txn_id: bytes


class Waiter:
    """A wait: for a lock in `mode`, or (`other`) for another transaction's end.

    `granted` is called once it holds the lock, `refused` if the wait is ended by 40P01.
    """

    __slots__ = ("granted", "key", "mode", "number", "other", "owner", "refused")

    def __init__(
        self,
        owner: Owner,
        key: Key,
        mode: int,
        granted: Callable[[], None],
        refused: Callable[[SqlError], None],
        other: Owner | None = None,
    ) -> None:
        self.owner = owner
        self.key = key
        self.mode = mode
        self.granted = granted
        self.refused = refused
        self.other = other
        self.number = 0


class _Lock:
    __slots__ = ("holders", "queue")

    def __init__(self) -> None:
        self.holders: list[Owner] = []
        self.queue: list[Waiter] = []


class LockTable:
    """All row locks of a node. An owner's `held` maps its keys to modes."""

    def __init__(self) -> None:
        self._locks: dict[Key, _Lock] = {}
        self._sessions: dict[bytes, list[Waiter]] = {}  # who waits, by session
        self.waits: dict[int, Waiter] = {}  # by number, oldest first
        self.last_wait = 0
        self.on_wait: Callable[[], None] = _nothing  # called as a wait begins
        self._victims: list[tuple[Waiter, SqlError]] = []

    def __len__(self) -> int:
        return len(self._locks)

    # --- taking and giving up

    def try_acquire(self, owner: Owner, key: Key, mode: int) -> bool:
        """Takes the lock if nobody is in the way."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = _Lock()
            lock.holders.append(owner)
            owner.held[key] = mode
            return True
        if owner.held.get(key, 0) >= mode:
            return True
        if lock.holders and self._obstructed(lock, owner, key, mode):
            return False
        if lock.queue and not _goes_first(lock, owner, key):
            conflicts = CONFLICTS[mode]
            if any(waiter.mode in conflicts for waiter in lock.queue):
                return False
        _hold(lock, owner, key, mode)
        return True

    def restore(self, owner: Owner, key: Key, mode: int) -> None:
        """Gives back a lock that was held when the process ended, whoever else had it too."""
        _hold(self._locks.setdefault(key, _Lock()), owner, key, mode)

    def wait(
        self,
        owner: Owner,
        key: Key,
        mode: int,
        granted: Callable[[], None],
        refused: Callable[[SqlError], None],
    ) -> Waiter:
        """Queues after a failed `try_acquire`. 40P01 if that closes a circle in which it is the
        youngest, 53200 if too many wait. Then: `refuse_victims`.
        """
        lock = self._locks[key]
        if len(lock.queue) >= limits.LOCK_WAITERS_MAX:
            raise SqlError("53200", "too many transactions wait for one row")
        waiter = Waiter(owner, key, mode, granted, refused)
        at = len(lock.queue)
        if _goes_first(lock, owner, key):
            at = sum(_goes_first(lock, other.owner, key) for other in lock.queue)
        lock.queue.insert(at, waiter)
        self._begin(waiter)
        return waiter

    def await_end(self, owner: Owner, other: Owner, refused: Callable[[SqlError], None]) -> Waiter:
        """Notes that `owner` waits for the end of `other`, until `cancel`; 40P01 as `wait`."""
        waiter = Waiter(owner, (0, b""), UPDATE, _nothing, refused, other)
        self._begin(waiter)
        return waiter

    def refuse_victims(self) -> None:
        """Ends the waits that newly closed circles made victims of. Not from within a statement."""
        victims, self._victims = self._victims, []
        for waiter, error in victims:
            if waiter.number in self.waits:
                waiter.refused(error)

    def cancel(self, waiter: Waiter) -> list[Callable[[], None]]:
        """Ends a wait; the grants this makes possible are to be called by the caller."""
        if self.waits.get(waiter.number) is not waiter:
            return []
        self._stop_waiting(waiter)
        lock = self._locks.get(waiter.key)
        if waiter.other is not None or lock is None:
            return []
        lock.queue.remove(waiter)
        return self._grant(waiter.key, lock)

    def release_all(self, owner: Owner) -> list[Callable[[], None]]:
        """Gives up everything an owner holds; the grants are to be called by the caller."""
        grants: list[Callable[[], None]] = []
        if self.waits:
            for waiter in list(self._sessions.get(ids.session_of(owner.txn_id), ())):
                if waiter.owner is owner:
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

    def weaken(self, owner: Owner, key: Key, mode: int) -> list[Callable[[], None]]:
        """Goes on holding a lock in a weaker mode, or (0) not at all; the grants as above."""
        lock = self._locks.get(key)
        if lock is None or owner.held.get(key, 0) <= mode:
            return []
        if mode:
            owner.held[key] = mode
        else:
            del owner.held[key]
            lock.holders.remove(owner)
        return self._grant(key, lock)

    # --- who is in whose way

    def holders(self, key: Key) -> list[Any]:
        """Who holds a lock now."""
        lock = self._locks.get(key)
        return [] if lock is None else list(lock.holders)

    def obstacles(self, owner: Owner, key: Key, mode: int) -> list[Any]:
        """Whom a request would wait for: holders, and those that wait already."""
        lock = self._locks.get(key)
        if lock is None:
            return []
        conflicts = CONFLICTS[mode]
        held = [h for h in lock.holders if h is not owner and h.held[key] in conflicts]
        return held + [waiter.owner for waiter in lock.queue if waiter.mode in conflicts]

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

    def edges(self, last: int) -> tuple[WaitEdge, ...]:
        """Who waits for whom, of the waits up to number `last`."""
        found: list[WaitEdge] = []
        for number, waiter in self.waits.items():
            if number > last or len(found) >= limits.WAIT_EDGES_MAX:
                break
            found += (_edge(waiter, blocker) for blocker in self._blockers(waiter))
        return tuple(found)

    def entries(self) -> Iterator[tuple[Key, Owner, int, bool]]:
        """All locks held (True) and waited for (False): key, who, mode."""
        for key, lock in self._locks.items():
            for holder in lock.holders:
                yield key, holder, holder.held[key], True
            for waiter in lock.queue:
                yield key, waiter.owner, waiter.mode, False

    def _obstructed(self, lock: _Lock, owner: Owner, key: Key, mode: int) -> bool:
        """True if a holder's mode conflicts."""
        conflicts = CONFLICTS[mode]
        for holder in lock.holders:
            if holder is owner or holder.held[key] not in conflicts:
                continue
            if not _together(key, holder, owner):
                return True
        return False

    def _blockers(self, waiter: Waiter, doomed: Container[int] = ()) -> list[Owner]:
        """Those whose end a wait is for. An earlier waiter as strong stands for all before it,
        as it waits for them; but one that goes before the queue waits for holders only, and
        those with numbers in `doomed` are as good as gone.
        """
        if waiter.other is not None:
            return [waiter.other]
        found: list[Owner] = []
        lock, owner, key = self._locks[waiter.key], waiter.owner, waiter.key
        conflicts = CONFLICTS[waiter.mode]
        if not _goes_first(lock, owner, key):
            for earlier in reversed(lock.queue[: lock.queue.index(waiter)]):
                if earlier.mode in conflicts and earlier.number not in doomed:
                    found.append(earlier.owner)
                    if earlier.mode >= waiter.mode and not _goes_first(lock, earlier.owner, key):
                        break
        for holder in lock.holders:
            if holder is owner or holder.held[key] not in conflicts:
                continue
            if not _together(key, holder, owner):
                found.append(holder)
        return found

    # --- inner workings

    def _begin(self, waiter: Waiter) -> None:
        """Enters a wait; of a circle it closes somebody has to give way, perhaps itself."""
        self.last_wait += 1
        waiter.number = self.last_wait
        self.waits[waiter.number] = waiter
        self._sessions.setdefault(ids.session_of(waiter.owner.txn_id), []).append(waiter)
        victims: list[tuple[Waiter, SqlError]] = []
        doomed = {victim.number for victim, _ in self._victims}
        while circle := self._circle(waiter, doomed):
            edges = [_edge(each, blocker) for each, blocker in circle]
            txn_id = deadlock.youngest(edge.waiter for edge in edges)
            error = deadlock.deadlock_error(deadlock.detail_of(edges, txn_id))
            victim = next(each for each, _ in circle if each.owner.txn_id == txn_id)
            if victim is waiter:  # with it all circles are gone
                self._stop_waiting(waiter)
                if waiter.other is None:
                    # Nobody came after it, so that nobody can go on because it leaves.
                    self._locks[waiter.key].queue.remove(waiter)
                raise error
            victims.append((victim, error))
            doomed.add(victim.number)
        self._victims += victims
        self.on_wait()

    def _circle(self, start: Waiter, doomed: set[int]) -> list[tuple[Waiter, Owner]]:
        """The shortest circle through a wait: each wait in it with whom it is for; or none."""
        target = ids.session_of(start.owner.txn_id)
        seen = {target}
        paths: list[list[tuple[Waiter, Owner]]] = [[]]
        waits = [start]
        for waiter, path in zip(waits, paths, strict=True):  # both grow meanwhile
            for blocker in self._blockers(waiter, doomed):
                session = ids.session_of(blocker.txn_id)
                if session == target and blocker.txn_id != waiter.owner.txn_id and path:
                    return [*path, (waiter, blocker)]
                if session in seen:
                    continue
                seen.add(session)
                for further in self._sessions.get(session, ()):
                    if further.number not in doomed:
                        waits.append(further)
                        paths.append([*path, (waiter, blocker)])
        return []

    def _grant(self, key: Key, lock: _Lock) -> list[Callable[[], None]]:
        """Lets waiters go on that conflict with no holder and no earlier waiter."""
        grants: list[Callable[[], None]] = []
        left: list[Waiter] = []
        earlier: set[int] = set()
        for at, waiter in enumerate(lock.queue):
            first = bool(lock.holders) and _goes_first(lock, waiter.owner, key)
            if not first and UPDATE in earlier:  # which nobody else gets past
                left += lock.queue[at:]
                break
            if (not first and earlier & CONFLICTS[waiter.mode]) or self._obstructed(
                lock, waiter.owner, key, waiter.mode
            ):
                left.append(waiter)
                earlier.add(waiter.mode)
                continue
            _hold(lock, waiter.owner, key, waiter.mode)
            self._stop_waiting(waiter)
            grants.append(waiter.granted)
        lock.queue = left
        if not lock.holders and not left:
            del self._locks[key]
        return grants

    def _stop_waiting(self, waiter: Waiter) -> None:
        del self.waits[waiter.number]
        session = ids.session_of(waiter.owner.txn_id)
        waits = self._sessions[session]
        waits.remove(waiter)
        if not waits:
            del self._sessions[session]


def _hold(lock: _Lock, owner: Owner, key: Key, mode: int) -> None:
    held = owner.held.get(key, 0)
    if not held:
        lock.holders.append(owner)
    owner.held[key] = max(held, mode)


def _together(key: Key, one: Owner, other: Owner) -> bool:
    """True if two owners are one to an advisory lock: the session's and its transaction's."""
    if key[0] != advisory.TABLE_ID:
        return False
    return ids.session_of(one.txn_id) == ids.session_of(other.txn_id)


def _goes_first(lock: _Lock, owner: Owner, key: Key) -> bool:
    """True for an upgrade: who holds a lock already would wait for those that wait for it."""
    if key in owner.held:
        return True
    return key[0] == advisory.TABLE_ID and any(_together(key, h, owner) for h in lock.holders)


def _edge(waiter: Waiter, blocker: Owner) -> WaitEdge:
    table_id, key = waiter.key
    what = deadlock.what_of(table_id, key, waiter.mode, blocker.txn_id)
    return WaitEdge(waiter.number, waiter.owner.txn_id, blocker.txn_id, what)


def _nothing() -> None:
    """For those who are told in another way, or not at all."""
