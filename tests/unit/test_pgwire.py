"""The frontend message reader: any cut of the stream gives the same messages; lies are caught."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.pgwire import messages
from coordinator.pgwire.messages import Frontend
from coordinator.pgwire.state import AFTER, TRANSITIONS, Event, Phase, action_of, after
from shardb._core.coreerror import CoreError
from shardb._core.pgwire import FrontendBuffer
from shardb.errors import ProtocolError


def bind_message(
    portal: bytes, name: bytes, formats: list[int], values: list[bytes | None], results: list[int]
) -> bytes:
    body = portal + b"\0" + name + b"\0" + struct.pack("!H", len(formats))
    body += b"".join(struct.pack("!H", code) for code in formats)
    body += struct.pack("!H", len(values))
    for value in values:
        body += struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value
    body += struct.pack("!H", len(results)) + b"".join(struct.pack("!H", c) for c in results)
    return messages.message(b"B", body)


names = st.binary(max_size=6).map(lambda data: data.replace(b"\0", b"x"))


@settings(max_examples=200, deadline=None)
@given(
    names,
    names,
    st.lists(st.none() | st.binary(max_size=20), max_size=5),
    st.lists(st.integers(0, 1), max_size=4),
    st.integers(1, 30),
)
def test_bind_survives_any_cut(
    portal: bytes, name: bytes, values: list[bytes | None], results: list[int], step: int
) -> None:
    stream = bind_message(portal, name, [1], values, results) + messages.message(b"S")
    buffer = FrontendBuffer(1000)
    seen = []
    for at in range(0, len(stream), step):
        buffer.feed(stream[at : at + step])
        while kind := buffer.next():
            seen.append((kind, buffer.bind() if kind == Frontend.BIND else buffer.payload()))
    assert seen == [
        (Frontend.BIND, (portal, name, b"\1", values, bytes(results))),
        (Frontend.SYNC, b""),
    ]
    assert buffer.pending == 0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from("BPDE"), st.binary(max_size=40))
def test_malformed_bodies_are_errors_and_nothing_else(kind: str, body: bytes) -> None:
    buffer = FrontendBuffer(1000)
    buffer.feed(messages.message(kind.encode(), body))
    assert buffer.next() == ord(kind)
    parse = {"B": buffer.bind, "P": buffer.parse, "D": buffer.target, "E": buffer.execute}[kind]
    try:
        parse()
    except CoreError as error:
        assert error.sqlstate in ("08P01", "22023")
    assert buffer.next() == 0


def test_a_message_over_the_limit_is_refused_by_its_header() -> None:
    buffer = FrontendBuffer(100)
    buffer.feed(b"Q" + struct.pack("!I", 101))
    with pytest.raises(CoreError, match="longer than 100"):
        buffer.next()


def test_phases() -> None:
    assert action_of(Phase.READY, Frontend.QUERY).value == "on_query"
    assert after(Phase.READY, Event.FAILED) is Phase.SKIPPING
    for phase in (Phase.READY, Phase.SKIPPING, Phase.COPY_IN):
        assert Frontend.TERMINATE in TRANSITIONS[phase]
        assert (phase, Event.CLOSED) in AFTER
    for kind in (0, 255, ord("z")):
        with pytest.raises(ProtocolError):
            action_of(Phase.READY, kind)
    with pytest.raises(ProtocolError):
        action_of(Phase.STARTUP, Frontend.QUERY)


def test_golden_bytes() -> None:
    assert messages.command_complete("INSERT 0 1") == b"C\0\0\0\x0fINSERT 0 1\0"
    assert messages.data_row([b"a", None]) == b"D\0\0\0\x0f\0\2\0\0\0\1a\xff\xff\xff\xff"
    assert messages.READY[b"I"] == b"Z\0\0\0\5I"
    assert messages.row_description([("n", 1, 2, 23, 4, -1)], b"\1") == (
        b"T\0\0\0\x1a\0\1n\0\0\0\0\1\0\2\0\0\0\x17\0\4\xff\xff\xff\xff\0\1"
    )


def test_payloads_joins_the_like_messages_that_are_complete() -> None:
    buffer = FrontendBuffer(1000)
    data = b"d\0\0\0\x05ad\0\0\0\x06bcd\0\0\0\x04c\0\0\0\x04d\0\0\0\x05e"
    for stop, expected in ((6, b"a"), (12, b"a"), (13, b"abc"), (len(data), b"abc")):
        buffer = FrontendBuffer(1000)
        buffer.feed(data[:stop])
        assert buffer.next() == ord("d")
        assert buffer.payloads() == expected, stop
    assert buffer.next() == ord("c")
    assert buffer.next() == ord("d")
    assert buffer.payloads() == b"e"
    assert buffer.next() == 0


def test_payloads_leaves_a_bad_header_to_next() -> None:
    buffer = FrontendBuffer(1000)
    buffer.feed(b"d\0\0\0\x05ad\xff\0\0\x05b")
    assert buffer.next() == ord("d")
    assert buffer.payloads() == b"a"
    with pytest.raises(CoreError):
        buffer.next()
