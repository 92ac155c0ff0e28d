"""The session's conversations, against a compiler, driver and shell that are fakes."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from coordinator.catalog import Catalog
from coordinator.executor import Executor
from coordinator.gate import TableGate
from coordinator.pgwire import messages
from coordinator.plan.cache import PlanCache
from coordinator.plan.plans import OutColumn, RowPlan, UtilityPlan
from coordinator.session import Session
from coordinator.sql.compiler import CompiledStatement, StatementText
from shardb import limits
from shardb._core.rowcodec import RowLayout
from shardb.errors import SqlError
from shardb.meta.descriptors import Column, Table
from shardb.program import ProgramSpec, TypeRef

INT4 = TypeRef(3)
TABLE = Table(1, "t", 1, (Column(1, "k", 3), Column(2, "v", 3)), (0,))
CATALOG = Catalog.build(1, [TABLE])
SELECT = RowPlan(
    ProgramSpec(1, 1, "select", (INT4,)), 77, (OutColumn("v", INT4, 1, 2),), "SELECT {}", 1
)
UPDATE = RowPlan(ProgramSpec(1, 1, "update", (INT4,)), 78, (), "UPDATE {}", 1)
UTILITY = {
    "begin": UtilityPlan("begin", ("", None), "BEGIN"),
    "commit": UtilityPlan("commit", (), "COMMIT"),
    "rollback": UtilityPlan("rollback", (), "ROLLBACK"),
}


class FakeCompiler:
    catalog = CATALOG

    def split(self, text: str) -> list[StatementText]:
        found, at = [], 0
        for part in text.split(";"):
            if part.strip():
                found.append(StatementText(part, at))
            at += len(part) + 1
        return found

    def compile(self, text: str, oids: Sequence[int] = ()) -> CompiledStatement:
        word = text.split()[0].lower()
        if word in UTILITY:
            return CompiledStatement(UTILITY[word], (), (), False)
        if word == "select":
            params = (INT4,) if "$1" in text else ()
            return CompiledStatement(SELECT, params, SELECT.columns, True)
        if word == "update":
            return CompiledStatement(UPDATE, (INT4,) if "$1" in text else (), (), False)
        raise SqlError("42601", f'syntax error at or near "{word}"', position=1)

    compile_lifted = compile


class FakeProgram:
    def __init__(self, spec: ProgramSpec, table: Table) -> None:
        self.param_layout = RowLayout(0, [(ref.code, ref.typmod) for ref in spec.params])


class Rows:
    def __init__(self, data: bytes, rows: int) -> None:
        self.data = data
        self.rows = rows


class FakeDriver:
    """Answers row programs on demand and keeps a log."""

    def __init__(self) -> None:
        self.gate = TableGate()
        self.log: list[str] = []
        self.pending: list[Callable[[Any], None]] = []
        self.automatic: Any = None
        self.begun = 0

    def begin(self, level: str = "read committed", process_id: int = 0) -> int:
        self.begun += 1
        self.log.append(f"begin {self.begun}")
        return self.begun

    def execute_row(
        self,
        txn: Any,
        plan: RowPlan,
        program: Any,
        params: bytes,
        formats: bytes,
        done: Any,
        process_id: int = 0,
    ) -> None:
        self.log.append(f"{plan.program.kind} in {txn}")
        self.pending.append(done)
        if self.automatic is not None:
            asyncio.get_running_loop().call_soon(done, self.automatic)

    def mark(self, txn: Any) -> int:
        return 0

    async def commit(self, txn: Any) -> None:
        self.log.append(f"commit {txn}")

    async def rollback(self, txn: Any) -> None:
        self.log.append(f"rollback {txn}")


class FakeShell:
    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True

    def spawn(self, work: Coroutine[Any, Any, None], done: Callable[[Any], None]) -> Any:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(
            lambda t: done(asyncio.CancelledError() if t.cancelled() else t.exception())
        )
        return task

    def waiter(self) -> Any:
        return asyncio.get_running_loop().create_future()

    def call_soon(self, function: Callable[[], None]) -> object:
        return asyncio.get_running_loop().call_soon(function)

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    async def drain(self) -> None: ...


class Client:
    """A session with its fakes; `talk` sends and gives the types of the replies."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.shell = FakeShell()

        def background(work: Coroutine[Any, Any, None]) -> object:
            return asyncio.get_running_loop().create_task(work)

        executor = Executor(
            self.driver,  # type: ignore[arg-type]
            PlanCache(FakeCompiler(), FakeProgram),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            background,
        )
        self.session = Session(executor, self.shell, 1, 2)  # type: ignore[arg-type]
        body = struct.pack("!I", 3 << 16) + b"user\0u\0database\0d\0\0"
        self.session.data_received(struct.pack("!I", len(body) + 4) + body)
        self.replies()

    def replies(self) -> list[tuple[str, bytes]]:
        data, self.shell.written = self.shell.written, b""
        found = []
        while data:
            length = int.from_bytes(data[1:5], "big")
            found.append((chr(data[0]), data[5 : length + 1]))
            data = data[length + 1 :]
        return found

    async def talk(self, data: bytes) -> str:
        self.session.data_received(data)
        for _ in range(10):
            await asyncio.sleep(0)
        self.last = self.replies()
        return "".join(kind for kind, _ in self.last)

    def sqlstate(self) -> str:
        body = next(body for kind, body in self.last if kind == "E")
        return next(f[1:].decode() for f in body.split(b"\0") if f[:1] == b"C")

    def status(self) -> str:
        return self.last[-1][1].decode()


def query(text: str) -> bytes:
    return messages.message(b"Q", text.encode() + b"\0")


def parse(text: str, name: bytes = b"") -> bytes:
    return messages.message(b"P", name + b"\0" + text.encode() + b"\0\0\0")


def bind(*values: bytes, name: bytes = b"", portal: bytes = b"") -> bytes:
    body = portal + b"\0" + name + b"\0\0\0" + struct.pack("!H", len(values))
    body += b"".join(struct.pack("!i", len(value)) + value for value in values)
    return messages.message(b"B", body + b"\0\0")


def execute(portal: bytes = b"", limit: int = 0) -> bytes:
    return messages.message(b"E", portal + b"\0" + struct.pack("!i", limit))


DESCRIBE = messages.message(b"D", b"P\0")
SYNC = messages.message(b"S")
ROW = Rows(messages.data_row([b"42"]), 1)


def run(conversation: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await conversation(Client())

    asyncio.run(main())


def test_pipelined_statement_is_one_reply_in_one_write() -> None:
    async def conversation(client: Client) -> None:
        assert (
            await client.talk(parse("select $1") + bind(b"5") + DESCRIBE + execute() + SYNC) == ""
        )  # nothing is written until the shard has answered
        client.driver.pending.pop()(ROW)
        assert "".join(kind for kind, _ in client.replies()) == "12TDCZ"
        assert client.driver.log == ["select in None"]

    run(conversation)


def test_simple_query_lifts_literals() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = ROW
        assert await client.talk(query("select v from t where k = 1")) == "TDCZ"
        assert await client.talk(query("select v from t where k = 2;")) == "TDCZ"
        assert len(client.session.plans) == 1

    run(conversation)


def test_error_skips_to_sync() -> None:
    async def conversation(client: Client) -> None:
        assert await client.talk(parse("nonsense") + bind() + execute() + SYNC) == "EZ"
        assert client.sqlstate() == "42601"
        client.driver.automatic = ROW
        assert await client.talk(parse("select $1") + bind(b"x") + execute()) == "1E"
        assert client.sqlstate() == "22P02"
        assert await client.talk(execute() + SYNC) == "Z"
        assert await client.talk(parse("select $1") + bind() + SYNC) == "1EZ"
        assert client.sqlstate() == "08P01"

    run(conversation)


def test_block_fails_until_its_end() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = ROW
        assert await client.talk(query("begin")) == "CZ"
        assert client.status() == "T"
        await client.talk(query("select v from t where k = 1"))
        client.driver.automatic = SqlError("22012", "division by zero")
        assert await client.talk(query("select v from t where k = 0")) == "EZ"
        assert client.status() == "E"
        assert await client.talk(query("select v from t where k = 1")) == "EZ"
        assert client.sqlstate() == "25P02"
        assert await client.talk(query("commit")) == "CZ"
        assert client.last[0][1] == b"ROLLBACK\0"
        assert client.status() == "I"
        assert client.driver.log == ["begin 1", "select in 1", "select in 1", "rollback 1"]

    run(conversation)


def test_commit_waits_for_the_driver() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = Rows(b"", 1)
        await client.talk(query("begin"))
        assert await client.talk(query("update t where k = 1")) == "CZ"
        assert await client.talk(query("commit")) == "CZ"
        assert client.driver.log == ["begin 1", "update in 1", "commit 1"]
        assert await client.talk(query("commit")) == "NCZ"

    run(conversation)


def test_statements_before_one_sync_are_one_transaction() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = Rows(b"", 1)
        one = bind(b"1", name=b"u") + execute()
        assert await client.talk(parse("update $1", b"u") + one + one + SYNC) == "12C2CZ"
        assert client.driver.log == ["begin 1", "update in 1", "update in 1", "commit 1"]
        client.driver.log.clear()
        assert await client.talk(one + SYNC) == "2CZ"
        assert client.driver.log == ["update in None"]

    run(conversation)


def test_several_simple_statements_are_one_transaction() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = Rows(b"", 1)
        assert await client.talk(query("update t; update t")) == "EZ"  # $1 misses: fakes want one
        client.driver.log.clear()
        assert await client.talk(query("begin; commit")) == "CCZ"
        assert await client.talk(query(" ; ")) == "IZ"

    run(conversation)


def test_row_limits_suspend_portals() -> None:
    async def conversation(client: Client) -> None:
        client.driver.automatic = Rows(
            b"".join(messages.data_row([b"%d" % n]) for n in range(5)), 5
        )
        assert (
            await client.talk(parse("select $1") + bind(b"1", portal=b"p") + execute(b"p", 2))
            == "12DDs"
        )
        assert await client.talk(execute(b"p", 2)) == "DDs"
        assert await client.talk(execute(b"p", 2)) == "DC"
        assert client.last[-1][1] == b"SELECT 5\0"
        assert await client.talk(SYNC) == "Z"
        assert await client.talk(execute(b"p", 2) + SYNC) == "EZ"
        assert client.sqlstate() == "34000"

    run(conversation)


def test_too_long_message_closes() -> None:
    async def conversation(client: Client) -> None:
        too_long = b"Q" + struct.pack("!I", limits.CLIENT_MESSAGE_MAX_BYTES + 1)
        assert await client.talk(too_long) == "E"
        assert client.sqlstate() == "08P01"
        assert client.shell.closed

    run(conversation)


def test_invalid_utf8() -> None:
    async def conversation(client: Client) -> None:
        assert await client.talk(messages.message(b"Q", b"select \xff\0")) == "EZ"
        assert client.sqlstate() == "22021"

    run(conversation)


@pytest.mark.parametrize("kind", [b"z", b"\0", b"R"])
def test_unknown_message_closes(kind: bytes) -> None:
    async def conversation(client: Client) -> None:
        assert await client.talk(messages.message(kind)) == "E"
        assert client.shell.closed

    run(conversation)


def test_ssl_is_refused_and_then_startup_goes_on() -> None:
    async def conversation(client: Client) -> None:
        shell = FakeShell()
        session = Session(client.session.executor, shell, 5, 6)  # type: ignore[arg-type]
        session.data_received(struct.pack("!II", 8, messages.SSL_REQUEST))
        assert shell.written == b"N"
        body = struct.pack("!I", 3 << 16) + b"user\0u\0options\0-c statement_timeout=5s\0\0"
        session.data_received(struct.pack("!I", len(body) + 4) + body)
        assert shell.written.endswith(messages.READY[b"I"])
        assert session.settings.shown("statement_timeout") == "5s"

    run(conversation)
