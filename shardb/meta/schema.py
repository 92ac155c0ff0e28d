"""Which keys the metadata store holds and how descriptors are written under them.

`tables/<id>`, `groups/<id>`, `ranges/<id>`, `nodes/<id>`: JSON descriptors; ids are decimal, padded
to ten digits so that key order is id order. `coordinators/<id>`: JSON `Coordinator`, bound to a
lease. `ids/next`, `oracle/bound`, `cluster/format`, `cluster/id`: decimal or plain text.
"""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec

from shardb.errors import SqlError
from shardb.meta.descriptors import Group, Node, Range, Table
from shardb.meta.store import Compare, Put, Store

TABLES: Final = "tables/"
GROUPS: Final = "groups/"
RANGES: Final = "ranges/"
NODES: Final = "nodes/"
COORDINATORS: Final = "coordinators/"
NEXT_ID: Final = "ids/next"
ORACLE_BOUND: Final = "oracle/bound"
CLUSTER_FORMAT: Final = "cluster/format"
CLUSTER_ID: Final = "cluster/id"

FORMAT: Final = 1
FIRST_ID: Final = 16_384  # PostgreSQL's first user OID: table ids are shown to clients as OIDs


class Coordinator(msgspec.Struct, frozen=True):
    """A coordinator that serves clients, bound to its lease. `listen` is `host:port`."""

    id: int
    listen: str
    pid: int = 0
    version: str = ""


Descriptor = Table | Group | Range | Node | Coordinator
AnyDescriptor = TypeVar("AnyDescriptor", Table, Group, Range, Node, Coordinator)

PREFIXES: Final[dict[type[Descriptor], str]] = {
    Table: TABLES,
    Group: GROUPS,
    Range: RANGES,
    Node: NODES,
    Coordinator: COORDINATORS,
}


def key_of(kind: type[Descriptor], ident: int) -> str:
    """The key of the descriptor of this kind and id."""
    return f"{PREFIXES[kind]}{ident:010d}"


def encode(descriptor: Descriptor) -> bytes:
    """A descriptor as JSON."""
    return msgspec.json.encode(descriptor)


def decode(kind: type[AnyDescriptor], value: bytes) -> AnyDescriptor:
    """A descriptor of this kind from JSON; XX001 if the value is none."""
    try:
        return msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        message = f"a stored {kind.__name__.lower()} descriptor is damaged: {error}"
        raise SqlError("XX001", message) from error


def put(descriptor: Descriptor, lease: int = 0) -> Put:
    """The operation that stores a descriptor under its key."""
    return Put(key_of(type(descriptor), descriptor.id), encode(descriptor), lease)


async def read_all(store: Store, kind: type[AnyDescriptor]) -> list[AnyDescriptor]:
    """Every stored descriptor of one kind, by id."""
    snapshot = await store.range(PREFIXES[kind])
    return [decode(kind, item.value) for item in snapshot.items]


async def take_ids(store: Store, count: int) -> int:
    """Reserves `count` ids that are never handed out again; the first of them."""
    assert count > 0, count
    while True:
        found = await store.get(NEXT_ID)
        first = FIRST_ID if found is None else int(found.value)
        revision = 0 if found is None else found.mod_revision
        written = Put(NEXT_ID, str(first + count).encode())
        if (await store.txn((Compare(NEXT_ID, revision),), (written,))).succeeded:
            return first
