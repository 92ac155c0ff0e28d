"""pg_locks and pg_stat_activity: who is there now, who holds what and who waits.

Locks are asked of the shards as the statement runs, at most LOCKS_LISTED_MAX of each; a shard that
cannot be reached is left out. Sessions are those of this coordinator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from coordinator.sql.catalog_rows import DATABASE
from coordinator.sql.catalog_tables import arrow_rows
from shardb.rpc.messages import LockEntry
from shardb.txn import advisory, ids
from shardb.txn.lockmodes import KEY_SHARE, NO_KEY_UPDATE, SHARE, UPDATE

if TYPE_CHECKING:
    from coordinator.conversation import Conversation
    from coordinator.executor import Executor

TABLES: Final = frozenset({"pg_locks", "pg_stat_activity"})

_ROW_MODES: Final = {  # as PostgreSQL calls those of its tuple locks
    KEY_SHARE: "AccessShareLock",
    SHARE: "RowShareLock",
    NO_KEY_UPDATE: "ExclusiveLock",
    UPDATE: "AccessExclusiveLock",
}
_OWNER_OID: Final = 10


async def table_of(executor: Executor, session: Conversation, name: str) -> pa.Table:
    """The rows of one of these tables."""
    locks = await executor.driver.list_locks()
    if name == "pg_locks":
        return arrow_rows(name, [_lock(entry) for entry in locks])
    waiting = {ids.process_id_of(entry.txn_id): entry for entry in locks if not entry.granted}
    rows = [_session(each, waiting) for each in executor.sessions.values()]
    return arrow_rows(name, rows)


def _lock(entry: LockEntry) -> dict[str, Any]:
    process_id = ids.process_id_of(entry.txn_id)
    row: dict[str, Any] = {
        "database": advisory.DATABASE,
        "virtualtransaction": f"{process_id}/{ids.number_of(entry.txn_id)}",
        "pid": process_id or None,
        "granted": entry.granted,
    }
    if entry.table_id == advisory.TABLE_ID:
        class_id, object_id, sub_id = advisory.parts_of(entry.key)
        mode = "ExclusiveLock" if entry.mode == UPDATE else "ShareLock"
        return row | {
            "locktype": "advisory",
            "classid": class_id,
            "objid": object_id,
            "objsubid": sub_id,
            "mode": mode,
        }
    mode = _ROW_MODES[entry.mode]
    return row | {"locktype": "tuple", "relation": entry.table_id, "mode": mode}


def _session(session: Conversation, waiting: dict[int, LockEntry]) -> dict[str, Any]:
    entry = waiting.get(session.process_id)
    kind: Sequence[str | None] = (None, None)
    if entry is not None:
        of_row = entry.table_id != advisory.TABLE_ID
        kind = ("Lock", "transactionid" if of_row else "advisory")
    elif not session.busy:
        kind = ("Client", "ClientRead")
    return {
        "datid": advisory.DATABASE,
        "datname": DATABASE,
        "pid": session.process_id,
        "usesysid": _OWNER_OID,
        "usename": session.user,
        "application_name": session.settings.shown("application_name"),
        "backend_start": session.started_us,
        "xact_start": session.txn_start_us or None,
        "wait_event_type": kind[0],
        "wait_event": kind[1],
        "state": session.state,
        "query": session.last_text.decode("utf-8", "replace"),
        "backend_type": "client backend",
    }
