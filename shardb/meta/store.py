"""The metadata store: a small ordered key-value store with revisions, compare-and-swap and watches.

Everything the cluster agrees on lives in one: descriptors, node registrations, the oracle's bound.
Implementations (`embedded`, `remote`, later etcd) are held to one contract test-suite.

Rules every implementation keeps:
- the store's revision grows by one with each transaction that changes something;
- a transaction is all or nothing and durable before it is answered;
- a watch yields every change of its prefix once, in revision order, whole transactions at a time,
  over reconnects; a start revision that is no longer kept raises `Compacted`, and the watcher then
  reads everything afresh;
- keys bound to a lease vanish, as an ordinary change, when the lease ends.

Values are at most `META_VALUE_MAX_BYTES` long. A call whose fate is unknown raises
`StoreUnavailable`; a compare on revisions makes repeating it safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from shardb.errors import SqlError

META_VALUE_MAX_BYTES: Final = 16 * 1024 * 1024
META_TXN_MAX_OPERATIONS: Final = 100_000


class StoreUnavailable(SqlError):
    """The store cannot be reached (57P03); a transaction that raises it may have happened."""

    def __init__(self, message: str) -> None:
        super().__init__("57P03", f"the metadata store cannot be reached: {message}")


class Compacted(SqlError):
    """The revision a watch asked for is no longer kept; `oldest` is the first that is."""

    def __init__(self, wanted: int, oldest: int) -> None:
        super().__init__("55000", f"revision {wanted} is compacted, the oldest kept is {oldest}")
        self.wanted = wanted
        self.oldest = oldest


class KeyValue(msgspec.Struct, frozen=True, array_like=True):
    """A key with its value at some revision; `lease` is 0 if it is bound to none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int = 0


class Compare(msgspec.Struct, frozen=True, array_like=True, tag="compare"):
    """Holds if the key was last changed at `mod_revision`; 0 means that the key does not exist."""

    key: str
    mod_revision: int


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """Writes a key, bound to `lease` unless that is 0."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="delete"):
    """Removes a key; a missing one is no error."""

    key: str


class Get(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    """Reads a key in a transaction; its result is in `TxnResult.reads`."""

    key: str


Operation = Put | Delete | Get


class TxnResult(msgspec.Struct, frozen=True, array_like=True):
    """`succeeded`: every compare held and `then` was carried out, else `otherwise` was.

    `revision` is the store's revision afterwards; `reads` has one item per Get, in order.
    """

    succeeded: bool
    revision: int
    reads: tuple[KeyValue | None, ...] = ()


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """All keys of a prefix, in key order, as of `revision`."""

    revision: int
    items: tuple[KeyValue, ...]


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One changed key; `value` is None if it was removed."""

    key: str
    value: bytes | None
    revision: int


class ChangeSet(msgspec.Struct, frozen=True, array_like=True):
    """The changes of one revision that a watch is interested in."""

    revision: int
    changes: tuple[Change, ...]


class Watch(ABC):
    """A running watch: iterate over it; `close` ends the iteration."""

    def __aiter__(self) -> AsyncIterator[ChangeSet]:
        return self

    @abstractmethod
    async def __anext__(self) -> ChangeSet:
        """The next changes. Raises `Compacted` if the start is no longer kept."""

    @abstractmethod
    def close(self) -> None:
        """Ends the watch; a waiting `__anext__` stops. Closing twice is no error."""


class Store(ABC):
    """The interface. All methods may be called from one event loop only."""

    @abstractmethod
    async def get(self, key: str) -> KeyValue | None:
        """The newest version of a key, or None."""

    @abstractmethod
    async def range(self, prefix: str) -> Snapshot:
        """All keys that start with `prefix` (the empty one is all), at one revision."""

    @abstractmethod
    async def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        """Carries out `then` if every compare holds, else `otherwise`, atomically and durably."""

    @abstractmethod
    def watch(self, prefix: str, from_revision: int) -> Watch:
        """The changes of a prefix from `from_revision` on, that one included.

        After `range`, `from_revision = snapshot.revision + 1` misses nothing.
        """

    @abstractmethod
    async def grant_lease(self, ttl_ms: int) -> int:
        """A new lease that ends unless it is kept alive every `ttl_ms`."""

    @abstractmethod
    async def keep_alive(self, lease: int) -> bool:
        """Renews a lease; False if it has ended (it then needs a new one)."""

    @abstractmethod
    async def revoke_lease(self, lease: int) -> None:
        """Ends a lease and removes its keys. An unknown lease is no error."""

    @abstractmethod
    async def close(self) -> None:
        """Lets go of files and connections; watches end."""

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Writes a key without a condition; the new revision."""
        return (await self.txn((), (Put(key, value, lease),))).revision

    async def delete(self, key: str) -> int:
        """Removes a key without a condition; the store's revision afterwards."""
        return (await self.txn((), (Delete(key),))).revision
