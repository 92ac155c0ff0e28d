"""Utility statements: transaction control, parameters, COPY, EXPLAIN, and the way to DDL.

`run_now` carries out what needs no waiting, within the turn that read the message; what it declines
(None) `run` does in the session's task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from coordinator.copy_in import copy_from
from coordinator.ddl.specs import Truncate
from coordinator.ddl_exec import empty_in_transaction
from coordinator.executor import Executor, Outcome, complete
from coordinator.isolation import READ_COMMITTED, in_read_only
from coordinator.pgwire import messages
from coordinator.plan.cache import Entry, describe
from coordinator.plan.explain import explain_lines
from coordinator.plan.plans import UtilityPlan
from coordinator.settings import PARAMETERS
from shardb import types
from shardb.errors import SqlError, unsupported

if TYPE_CHECKING:
    from coordinator.conversation import Conversation

_OF_TRANSACTION: Final = frozenset({"transaction_isolation", "transaction_read_only"})
_DDL: Final = frozenset(
    {"create_table", "drop_table", "truncate", "alter_table", "add_primary_key"}
)


@dataclass(slots=True)
class UtilityResult:
    """Messages before the result (notices, parameter status), its rows, and its tag."""

    tag: str
    rows: list[bytes] = field(default_factory=list)
    description: bytes = b""
    before: list[bytes] = field(default_factory=list)


def run_now(session: Conversation, plan: UtilityPlan) -> UtilityResult | None:
    """Runs the statement if nothing has to be waited for."""
    handler = _NOW.get(plan.kind)
    return None if handler is None else handler(session, plan)


async def run(executor: Executor, session: Conversation, plan: UtilityPlan) -> Outcome:
    """Runs a statement that waits for shards, the store or the client."""
    kind = plan.kind
    if kind == "commit":
        return await _commit(executor, session)
    if kind == "rollback":
        txn, session.txn = session.txn, None
        end_block(session)
        if txn is not None:
            await executor.driver.rollback(txn)
        return Outcome(None, complete("ROLLBACK"))
    if kind == "rollback_to":
        return await _rollback_to(executor, session, plan)
    if kind == "copy_from":
        if session.forbids_writes:
            raise in_read_only("COPY FROM")
        count = await copy_from(executor, session, plan.args[0])  # type: ignore[arg-type]
        return Outcome(None, complete(f"COPY {count}"))
    if kind in _DDL:
        if session.forbids_writes:
            raise in_read_only(plan.tag)
        if isinstance(plan.args[0], Truncate) and (session.status == b"T" or session.txn):
            await empty_in_transaction(session, plan.args[0])
            return Outcome(None, complete(plan.tag))
        return Outcome(None, complete(await executor.ddl.run(session, plan)))
    raise unsupported(plan.tag or kind)


async def _commit(executor: Executor, session: Conversation) -> Outcome:
    txn, session.txn = session.txn, None
    end_block(session)
    assert txn is not None
    await executor.driver.commit(txn)
    return Outcome(None, complete("COMMIT"))


async def _rollback_to(executor: Executor, session: Conversation, plan: UtilityPlan) -> Outcome:
    name = str(plan.args[0])
    at = session.savepoint_index(name)
    mark = session.savepoints[at][1]
    del session.savepoints[at + 1 :]
    if session.txn is not None:
        await executor.driver.rollback_to(session.txn, mark)
    session.status = b"T"
    return Outcome(None, complete("ROLLBACK"))


def end_block(session: Conversation) -> None:
    """Leaves the transaction block."""
    session.status = b"I"
    session.implicit = False
    session.read_only = False
    session.level = READ_COMMITTED
    session.savepoints.clear()
    session.txn_start_us = 0
    for name, value in session.settings.end_transaction():
        session.out.append(messages.parameter_status(name, value))


def warning(sqlstate: str, text: str) -> bytes:
    """A NoticeResponse of level WARNING."""
    return messages.notice_response(SqlError(sqlstate, text))


# --- transaction control


def _begin(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    result = UtilityResult(plan.tag)
    if session.status == b"T":
        result.before.append(warning("25001", "there is already a transaction in progress"))
        return result
    isolation, read_only = (str(plan.args[0] or ""), plan.args[1]) if plan.args else ("", None)
    settings = session.settings
    session.level = isolation or settings.default_level
    session.read_only = settings.default_read_only if read_only is None else bool(read_only)
    session.status = b"T"
    session.implicit = False
    session.txn_start_us = session.executor.now_us()
    return result


def _change_modes(session: Conversation, isolation: str, read_only: bool | None) -> None:
    """SET TRANSACTION: of the level not after the first query, of the rest only to READ ONLY."""
    if isolation and isolation != session.level:
        if session.txn is not None:
            raise SqlError(
                "25001", "SET TRANSACTION ISOLATION LEVEL must be called before any query"
            )
        session.level = isolation
    if read_only is not None:
        if session.read_only and not read_only and session.txn is not None:
            raise SqlError("25001", "transaction read-write mode must be set before any query")
        session.read_only = read_only


def _commit_now(session: Conversation, plan: UtilityPlan) -> UtilityResult | None:
    if session.status == b"E":
        session.abandon()
        end_block(session)
        return UtilityResult("ROLLBACK")
    if session.txn is not None:
        return None
    result = UtilityResult("COMMIT")
    if session.status == b"I":
        result.before.append(warning("25P01", "there is no transaction in progress"))
    end_block(session)
    return result


def _rollback_now(session: Conversation, plan: UtilityPlan) -> UtilityResult | None:
    if session.txn is not None:
        return None
    result = UtilityResult("ROLLBACK")
    if session.status == b"I":
        result.before.append(warning("25P01", "there is no transaction in progress"))
    end_block(session)
    return result


def _set_transaction(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    result = UtilityResult(plan.tag)
    if session.status != b"T":
        text = "SET TRANSACTION can only be used in transaction blocks"
        result.before.append(warning("25P01", text))
    else:
        _change_modes(session, *plan.args)  # type: ignore[arg-type]
    return result


def _savepoint(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    if session.status != b"T":
        raise SqlError("25P01", "SAVEPOINT can only be used in transaction blocks")
    if session.txn is None:
        session.begin()
    assert session.txn is not None
    session.savepoints.append((str(plan.args[0]), session.driver.mark(session.txn)))
    return UtilityResult(plan.tag)


def _release(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    del session.savepoints[session.savepoint_index(str(plan.args[0])) :]
    return UtilityResult(plan.tag)


# --- parameters


def _set(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    name, value, local = str(plan.args[0]), plan.args[1], bool(plan.args[2])
    result = UtilityResult(plan.tag)
    if name.lower() in _OF_TRANSACTION and session.status == b"T":
        _set_of_transaction(session, name.lower(), None if value is None else str(value))
        return result
    told = session.settings.set(name, None if value is None else str(value), local)
    if told is not None:
        result.before.append(messages.parameter_status(canonical(name), told))
    return result


def _set_of_transaction(session: Conversation, name: str, value: str | None) -> None:
    """SET transaction_isolation and transaction_read_only, which are SET TRANSACTION."""
    parameter = PARAMETERS[name]
    checked = parameter.check(parameter.name, parameter.default if value is None else value)
    if name == "transaction_isolation":
        _change_modes(session, checked, None)
    else:
        _change_modes(session, "", checked == "on")


def shown(session: Conversation, name: str) -> str:
    """A parameter as SHOW prints it; those of the transaction are the session's to know."""
    key = name.lower()
    if key not in _OF_TRANSACTION:
        return session.settings.shown(name)
    block = session.status != b"I"
    if key == "transaction_isolation":
        return session.level if block else session.settings.default_level
    return "on" if (session.read_only if block else session.settings.default_read_only) else "off"


def canonical(name: str) -> str:
    """A parameter's name as PostgreSQL writes it."""
    found = PARAMETERS.get(name.lower())
    return name if found is None else found.name


def _show(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    name = str(plan.args[0])
    if name.lower() == "all":
        rows = [
            messages.data_row([key.encode(), value.encode(), b""])
            for key, value in session.settings.everything()
        ]
    else:
        rows = [messages.data_row([shown(session, name).encode()])]
    return UtilityResult(plan.tag, rows, describe(plan.columns, b""))


def _settings(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    """SELECT current_setting(...), set_config(...)."""
    result = UtilityResult(plan.tag, description=describe(plan.columns, b""))
    values: list[bytes | None] = []
    calls: Sequence[tuple[str, str | None, bool]] = plan.args  # type: ignore[assignment]
    for name, value, local in calls:
        if value is not None:
            told = session.settings.set(name, value, local)
            if told is not None:
                result.before.append(messages.parameter_status(canonical(name), told))
        values.append(shown(session, name).encode())
    result.rows.append(messages.data_row(values))
    return result


def _reset(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    name = str(plan.args[0])
    result = UtilityResult(plan.tag)
    if name.lower() in ("", "all"):
        for key, value in session.settings.reset_all():
            result.before.append(messages.parameter_status(key, value))
        return result
    told = session.settings.set(name, None)
    if told is not None:
        result.before.append(messages.parameter_status(canonical(name), told))
    return result


def _discard(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    what = str(plan.args[0]).lower() if plan.args else "all"
    result = UtilityResult(plan.tag)
    if what == "all":
        if session.status != b"I":
            raise SqlError("25001", "DISCARD ALL cannot run inside a transaction block")
        session.prepared.clear()
        session.portals.clear()
        session.advisory.release_all()
        for key, value in session.settings.reset_all():
            result.before.append(messages.parameter_status(key, value))
    return result


def _prepare(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    name, type_names, text = str(plan.args[0]), plan.args[1], str(plan.args[2])
    assert isinstance(type_names, tuple), type_names
    if name.encode() in session.prepared:
        raise SqlError("42P05", f'prepared statement "{name}" already exists')
    oids = []
    for type_name in type_names:
        code = types.type_by_name(type_name)
        if code is None:
            raise SqlError("42704", f'type "{type_name}" does not exist')
        oids.append(types.TYPES[code].oid)
    session.prepared[name.encode()] = session.prepare(text.encode(), tuple(oids))
    return UtilityResult(plan.tag)


async def bound_execute(
    executor: Executor, session: Conversation, plan: UtilityPlan
) -> tuple[Entry, bytes]:
    """What EXECUTE runs: the prepared statement's plan and its parameter row."""
    name, arguments = str(plan.args[0]), plan.args[1]
    assert isinstance(arguments, tuple), arguments
    prepared = session.prepared.get(name.encode())
    if prepared is None or prepared.entry is None:
        raise SqlError("26000", f'prepared statement "{name}" does not exist')
    entry = session.fresh(prepared)
    if len(arguments) != entry.param_count:
        raise SqlError(
            "42601",
            f'wrong number of parameters for prepared statement "{name}"',
            detail=f"Expected {entry.param_count} parameters but got {len(arguments)}.",
        )
    values = [
        await executor.evaluate(session, text, ref.code, ref.typmod)
        for text, ref in zip(arguments, entry.params, strict=True)
    ]
    formats, values = session.with_extras(entry, b"", values)
    return entry, entry.layout.encode_params(formats, values)


def _deallocate(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    name = plan.args[0]
    if not name:
        session.prepared.clear()
    elif session.prepared.pop(str(name).encode(), None) is None:
        raise SqlError("26000", f'prepared statement "{name}" does not exist')
    return UtilityResult(plan.tag)


# --- the rest


def _explain(session: Conversation, plan: UtilityPlan) -> UtilityResult | None:
    if plan.args[1]:
        return None  # ANALYZE takes time
    lines = explain_lines(plan.args[0], session.executor.catalog)  # type: ignore[arg-type]
    rows = [messages.data_row([str(line).encode()]) for line in lines]
    return UtilityResult(plan.tag, rows, describe(plan.columns, b""))


def _nothing(session: Conversation, plan: UtilityPlan) -> UtilityResult:
    return UtilityResult(plan.tag)


_NOW: Final[dict[str, Callable[[Conversation, UtilityPlan], UtilityResult | None]]] = {
    "begin": _begin,
    "commit": _commit_now,
    "rollback": _rollback_now,
    "set_transaction": _set_transaction,
    "savepoint": _savepoint,
    "release": _release,
    "set": _set,
    "show": _show,
    "settings": _settings,
    "reset": _reset,
    "discard": _discard,
    "prepare": _prepare,
    "deallocate": _deallocate,
    "explain": _explain,
    "vacuum": _nothing,
    "analyze": _nothing,
    "empty": _nothing,
}
