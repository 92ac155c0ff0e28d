"""The protocol state of one connection, as tables: which message may come when, and what it means.

`TRANSITIONS[phase]` maps a frontend message to the action that the session carries out; `AFTER`
says which phase follows an outcome. Everything that affects the phase is in this file; no I/O here.

Phases
    STARTUP   before the start-up packet is accepted (its packets have no type byte)
    READY     simple and extended messages are accepted
    SKIPPING  an extended message failed: everything up to Sync is thrown away (manual 55.2.3)
    COPY_IN   COPY FROM STDIN takes data
    CLOSED    nothing more is read
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final

from coordinator.pgwire.messages import Frontend
from shardb.errors import ProtocolError


class Phase(IntEnum):
    """Where the conversation stands."""

    STARTUP = 0
    READY = 1
    SKIPPING = 2
    COPY_IN = 3
    CLOSED = 4


class Action(Enum):
    """What the session does with a message; the value is the name of its handler."""

    PARSE = "on_parse"
    BIND = "on_bind"
    DESCRIBE = "on_describe"
    EXECUTE = "on_execute"
    CLOSE = "on_close"
    QUERY = "on_query"
    SYNC = "on_sync"
    FLUSH = "on_flush"
    FUNCTION_CALL = "on_function_call"
    COPY_DATA = "on_copy_data"
    COPY_DONE = "on_copy_done"
    COPY_FAIL = "on_copy_fail"
    COPY_BROKEN = "on_copy_broken"
    TERMINATE = "on_terminate"
    IGNORE = "on_ignored"


class Event(Enum):
    """What moves the phase, beside the messages themselves."""

    STARTED = "started"  # the start-up packet was accepted
    FAILED = "failed"  # an extended-protocol message failed
    SYNCED = "synced"
    COPY_BEGUN = "copy begun"
    COPY_ENDED = "copy ended"
    CLOSED = "closed"


_SKIPPED: Final = (
    Frontend.PARSE,
    Frontend.BIND,
    Frontend.DESCRIBE,
    Frontend.EXECUTE,
    Frontend.CLOSE,
    Frontend.FLUSH,
    Frontend.QUERY,
    Frontend.FUNCTION_CALL,
    Frontend.COPY_DATA,
    Frontend.COPY_DONE,
    Frontend.COPY_FAIL,
)

TRANSITIONS: Final[dict[Phase, dict[Frontend, Action]]] = {
    Phase.STARTUP: {},
    Phase.READY: {
        Frontend.PARSE: Action.PARSE,
        Frontend.BIND: Action.BIND,
        Frontend.DESCRIBE: Action.DESCRIBE,
        Frontend.EXECUTE: Action.EXECUTE,
        Frontend.CLOSE: Action.CLOSE,
        Frontend.QUERY: Action.QUERY,
        Frontend.SYNC: Action.SYNC,
        Frontend.FLUSH: Action.FLUSH,
        Frontend.FUNCTION_CALL: Action.FUNCTION_CALL,
        Frontend.TERMINATE: Action.TERMINATE,
        # What a client still sends after a COPY that failed.
        Frontend.COPY_DATA: Action.IGNORE,
        Frontend.COPY_DONE: Action.IGNORE,
        Frontend.COPY_FAIL: Action.IGNORE,
    },
    Phase.SKIPPING: {
        **dict.fromkeys(_SKIPPED, Action.IGNORE),
        Frontend.SYNC: Action.SYNC,
        Frontend.TERMINATE: Action.TERMINATE,
    },
    Phase.COPY_IN: {
        Frontend.COPY_DATA: Action.COPY_DATA,
        Frontend.COPY_DONE: Action.COPY_DONE,
        Frontend.COPY_FAIL: Action.COPY_FAIL,
        Frontend.FLUSH: Action.IGNORE,
        Frontend.SYNC: Action.IGNORE,
        Frontend.TERMINATE: Action.TERMINATE,
        **dict.fromkeys(
            (
                Frontend.PARSE,
                Frontend.BIND,
                Frontend.DESCRIBE,
                Frontend.EXECUTE,
                Frontend.CLOSE,
                Frontend.QUERY,
                Frontend.FUNCTION_CALL,
            ),
            Action.COPY_BROKEN,
        ),
    },
    Phase.CLOSED: {},
}

AFTER: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.STARTUP, Event.STARTED): Phase.READY,
    (Phase.READY, Event.FAILED): Phase.SKIPPING,
    (Phase.READY, Event.SYNCED): Phase.READY,
    (Phase.SKIPPING, Event.SYNCED): Phase.READY,
    (Phase.READY, Event.COPY_BEGUN): Phase.COPY_IN,
    (Phase.COPY_IN, Event.COPY_ENDED): Phase.READY,
    **{(phase, Event.CLOSED): Phase.CLOSED for phase in Phase},
}


def action_of(phase: Phase, kind: int) -> Action:
    """The action for message type `kind`; a message that may not come here is a ProtocolError."""
    try:
        return TRANSITIONS[phase][Frontend(kind)]
    except (KeyError, ValueError):
        raise ProtocolError(f"invalid frontend message type {kind}") from None


def after(phase: Phase, event: Event) -> Phase:
    """The phase that follows; an impossible pair is our bug."""
    following = AFTER.get((phase, event))
    assert following is not None, (phase, event)
    return following
