"""Clients of a small node, what they were promised, and what must be there whatever happens.

One seed makes one run: which statements are sent, when each thing in the background happens, and
how transactions end. The `Book` holds what the rows are in plain Python; it lives on over crashes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from shardb.meta.descriptors import Range, Table
from shardb.rpc import messages as m
from tests.support.small_node import (
    HIGH,
    LOW,
    MAIN,
    SPLIT,
    Answer,
    Life,
    Session,
    Values,
    cells,
    side_table,
    ticks,
    with_column,
    without_column,
)

RANGES = (LOW, HIGH)
KEYS = 40  # of each range, that are written again and again
CLIENTS = 4
ALTERS_MAX = 6
Place = tuple[int, int]  # range id, table id
Write = tuple[int, Place, int, Values | None]  # statement, where, the row's id, the row


@dataclass
class Book:
    """Every committed version of every row."""

    history: dict[Place, dict[int, list[tuple[int, Values | None]]]] = field(default_factory=dict)

    def commit(self, writes: list[Write], commit_ts: int) -> None:
        for _, place, ident, values in writes:
            versions = self.history.setdefault(place, {}).setdefault(ident, [])
            if versions and versions[-1][0] == commit_ts:
                versions.pop()  # the transaction's own, overwritten
            assert not versions or versions[-1][0] < commit_ts, (place, ident, versions, commit_ts)
            versions.append((commit_ts, values))

    def at(self, place: Place, table: Table, ts: int) -> dict[int, list[Any]]:
        """The rows a snapshot sees."""
        found = {}
        for ident, versions in self.history.get(place, {}).items():
            values = next((values for at, values in reversed(versions) if at <= ts), None)
            if values is not None:
                found[ident] = cells(table, values)
        return found

    def timestamps(self, place: Place) -> list[int]:
        return [at for versions in self.history.get(place, {}).values() for at, _ in versions]


class Client:
    """One transaction after the other; `ended` once the present one is."""

    def __init__(self, session: Session, table: Table) -> None:
        self.session = session
        self.table = table
        self.writes: list[Write] = []
        self.sent: list[Write] = []  # of the statement under way
        self.left = 0  # statements to come
        self.single: Range | None = None  # it has asked for a commit there in one phase
        self.asked: dict[int, int] = {}  # ranges asked to prepare, what they answered (0: nothing)
        self.decision: int | None = None  # its timestamp, 0: abort
        self.told: set[int] = set()  # ranges that know of the decision for certain
        self.ended = False
        self.waiting: list[tuple[Answer, Callable[[m.Message], None]]] = []

    @property
    def state(self) -> str:
        return f"{self.session.id.hex()} {self.single} {self.asked} {self.decision} {self.told}"


class Workload:
    """Drives clients of one node at a time; see `begin`, `run`, `lose`, `recover` and `check`."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = ticks()
        self.now = next(self.clock)
        self.book = Book()
        self.tables: dict[int, Table] = {MAIN.id: MAIN}
        self.wanted: dict[int, Table] = {MAIN.id: MAIN}  # with changes under way
        self.dropping: set[int] = set()
        self.clients: list[Client] = []
        self.numbers: Iterator[int] = iter(range(1, 1 << 30))
        self.fresh = {LOW.id: KEYS, HIGH.id: SPLIT + KEYS}
        self.indexes: dict[int, int] = {}  # of each range, that are durable for certain
        self.full = False  # refusals for want of room are fine
        self.counts: dict[str, int] = {}

    def begin(self, life: Life) -> None:
        """A process has started, the first or a later one."""
        self.life = life
        for table in self.wanted.values():
            if table.id not in self.dropping:
                life.install(table)
        for table_id in list(self.dropping):
            for range_ in RANGES:
                assert life.reply(m.DropTable(range_.id, table_id)) == m.Ack()
            self._dropped(table_id)
        self.tables = dict(self.wanted)

    # --- a step

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step(self) -> None:
        life = self.life
        dice = self.rng.random()
        if dice < 0.4:
            life.disk.step()
        elif dice < 0.55:
            life.background.step()
        elif dice < 0.6:
            life.disk.step_timers()
        else:
            self._client()
        self._hear()
        for range_ in RANGES:
            self.indexes[range_.id] = life.node.engine.applied_index(range_.id)

    def finish(self) -> None:
        """Ends all clients and waits for all that is due."""
        for _ in range(3000):
            for client in self.clients:
                client.left = 0
            if not self.clients and not self.life.turn():
                break
            busy = [client for client in self.clients if client.waiting]
            for client in self.clients:
                if client not in busy:
                    self._end(client)
            self.life.turn()
            self._hear()
        assert not self.clients, [client.state for client in self.clients]
        self.life.settle()

    def _hear(self) -> None:
        """Takes the answers that have come."""
        for client in list(self.clients):
            waiting, client.waiting = client.waiting, []
            for answer, take in waiting:
                if answer.message is None:
                    client.waiting.append((answer, take))
                else:
                    take(answer.message)
            if client.ended:
                self.clients.remove(client)

    def _client(self) -> None:
        self.now = self.life.issued = next(self.clock)
        idle = [client for client in self.clients if not client.waiting]
        dice = self.rng.random()
        if dice < 0.03:
            self._change_tables()
        elif idle and (dice < 0.6 or len(self.clients) >= CLIENTS):
            client = self.rng.choice(idle)
            if client.left:
                self._statement(client)
            else:
                self._end(client)
        elif len(self.clients) < CLIENTS:
            self._begin()

    # --- clients

    def _begin(self) -> None:
        usable = [t for t in self.tables.values() if t.id not in self.dropping]
        table = usable[0] if self.rng.random() < 0.75 else self.rng.choice(usable)
        client = Client(Session(self.life, next(self.numbers)), table)
        self.clients.append(client)
        if self.rng.random() < 0.4:
            client.single = self.rng.choice(RANGES)
            self._statement(client, commit=True)
        else:
            client.left = self.rng.randrange(1, 6)
            self._statement(client)

    def _statement(self, client: Client, commit: bool = False) -> None:
        rng = self.rng
        range_ = client.single if commit and client.single else rng.choice(RANGES)
        place = range_.id, client.table.id
        base = 0 if range_ is LOW else SPLIT
        mode = rng.choice(["put", "put", "delete", "insert", "insert", "insert"])
        if client.session.states and rng.random() < 0.1 and not commit:
            self._rollback_to(client)
            return
        values: dict[int, Values | None] = {}
        if mode == "insert":
            first = self.fresh[range_.id]
            count = rng.choice([1, 8, 12, 50])  # kept as they came from 8 on
            self.fresh[range_.id] += count
            idents = range(first, first + count)
        else:
            near = rng.choice([base, max(base, self.fresh[range_.id] - KEYS)])
            idents = range(near, near + KEYS)
            idents = sorted(rng.sample(idents, rng.choice([1, 3, 8])))  # type: ignore[assignment]
        for ident in idents:
            row: dict[int, Any] = {column.id: rng.randrange(100) for column in client.table.columns}
            row |= {1: ident, 3: rng.choice([None, "", "x" * rng.randrange(60)])}
            values[ident] = None if mode == "delete" else row
        message = client.session.write_message(mode, values, client.table, commit)
        statement = message.txn.statement
        client.sent = [(statement, place, ident, row) for ident, row in values.items()]

        def take(reply: m.Message) -> None:
            sent, client.sent = client.sent, []
            client.session.learn(message, reply)
            if isinstance(reply, m.Failure):
                self._failed(client, reply, commit)
                return
            assert isinstance(reply, m.Written), reply
            client.writes += sent
            client.left -= 1
            self._count(mode)
            if commit:
                self._committed(client, reply.commit_ts)

        client.waiting.append((self.life.ask(message), take))

    def _rollback_to(self, client: Client) -> None:
        """Takes back the later statements of a range."""
        session = client.session
        range_id = self.rng.choice(list(session.states))
        statement = self.rng.choice(session.live[range_id])
        state_id = session.states[range_id]

        def take(reply: m.Message) -> None:
            if isinstance(reply, m.Failure):
                self._failed(client, reply, False)
                return
            session.live[range_id] = [n for n in session.live[range_id] if n <= statement]
            client.writes = [w for w in client.writes if w[0] <= statement or w[1][0] != range_id]
            self._count("rollback to")

        message = m.Rollback(range_id, session.id, state_id, statement)
        client.waiting.append((self.life.ask(message), take))

    def _failed(self, client: Client, failure: m.Failure, final: bool) -> None:
        """A statement was refused; what went before it stays."""
        if failure.sqlstate in ("40001", "40P01", "23505"):
            self._count(failure.sqlstate)
        else:
            self._no_room(failure)
            assert failure.aborted or not final
        if final or not client.session.states:
            client.ended = True
        client.left = 0

    def _end(self, client: Client) -> None:
        """The next step of the end of a transaction."""
        session = client.session
        if not client.asked and (self.rng.random() < 0.1 or not client.writes):
            for range_id, state_id in session.states.items():
                self.life.ask(m.Rollback(range_id, session.id, state_id))
            client.ended = True
            self._count("rollback")
        elif client.decision is not None:
            self._decide(client)
        elif len(session.states) == 1 and self.rng.random() < 0.7 and not client.asked:
            (client.single,) = (r for r in RANGES if r.id in session.states)
            message = session.commit_message(client.single)
            client.waiting.append((self.life.ask(message), lambda reply: self._one(client, reply)))
        elif len(client.asked) < len(session.states):
            range_ = next(r for r in RANGES if r.id in session.states and r.id not in client.asked)
            client.asked[range_.id] = 0
            message_ = session.prepare_message(range_)

            def take(reply: m.Message) -> None:
                if isinstance(reply, m.Prepared):
                    client.asked[range_.id] = reply.min_commit_ts
                    self._count("prepare")
                else:
                    self._no_room(reply)
                    client.decision = 0
                    client.told.add(range_.id)

            client.waiting.append((self.life.ask(message_), take))
        else:
            self._choose(client)

    def _one(self, client: Client, reply: m.Message) -> None:
        if isinstance(reply, m.Failure):
            self._failed(client, reply, True)
            return
        assert isinstance(reply, m.Committed), reply
        self._committed(client, reply.commit_ts)

    def _committed(self, client: Client, commit_ts: int) -> None:
        self.book.commit(client.writes, commit_ts)
        client.ended = True
        self._count("commit")

    def _choose(self, client: Client) -> None:
        """All are asked: the outcome of the transaction."""
        if all(client.asked.values()) and self.rng.random() < 0.8:
            client.decision = max(client.asked.values())
            self.book.commit(client.writes, client.decision)
        else:
            client.decision = 0
        self._count("decide" if client.decision else "abort")

    def _decide(self, client: Client) -> None:
        decision = client.decision
        assert decision is not None
        for range_id in client.session.states:
            if range_id in client.told:
                continue

            def take(reply: m.Message, range_id: int = range_id) -> None:
                if isinstance(reply, m.Failure):  # told again
                    self._no_room(reply)
                    return
                client.told.add(range_id)
                client.ended = client.told == set(client.session.states)

            message = m.Decide(range_id, client.session.id, decision)
            client.waiting.append((self.life.ask(message), take))
        client.ended = client.told == set(client.session.states)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # --- tables

    def _change_tables(self) -> None:
        """ALTER, CREATE or DROP, of a table that no transaction uses."""
        used = {client.table.id for client in self.clients}
        sides = [table for table in self.tables.values() if table.id != MAIN.id]
        if self.dropping:
            return
        free = [table for table in sides if table.id not in used]
        if len(sides) < 2:
            self._install(side_table(next(self.numbers)))
        elif free and self.rng.random() < 0.6:
            table = self.rng.choice(free)
            self.dropping.add(table.id)
            client = Client(Session(self.life, next(self.numbers)), table)
            left = set(RANGES)
            for range_ in RANGES:

                def done(range_: Range = range_) -> None:
                    left.discard(range_)
                    client.ended = not left
                    if not left:
                        self._dropped(table.id)

                self._ask(client, m.DropTable(range_.id, table.id), done)
            self.clients.append(client)
            self._count("drop")
        elif MAIN.id not in used and len(self.wanted[MAIN.id].history) < ALTERS_MAX:
            main = self.tables[MAIN.id]
            more = len(main.columns) < 4 or self.rng.random() < 0.5
            self._install(with_column(main) if more else without_column(main))

    def _install(self, table: Table) -> None:
        client = Client(Session(self.life, next(self.numbers)), table)
        self.wanted[table.id] = table
        left = set(RANGES)
        for range_ in RANGES:

            def done(range_: Range = range_) -> None:
                left.discard(range_)
                client.ended = not left
                if not left:
                    self.tables[table.id] = table
                    self._count("install")

            self._ask(client, m.InstallTable(range_, table), done)
        self.clients.append(client)

    def _ask(self, client: Client, message: m.Message, done: Callable[[], None]) -> None:
        """Until it is done: there may be no room for it yet."""

        def take(reply: m.Message) -> None:
            if reply == m.Ack():
                done()
                return
            self._no_room(reply)
            self._ask(client, message, done)

        client.waiting.append((self.life.ask(message), take))

    def _no_room(self, reply: m.Message) -> None:
        assert self.full and isinstance(reply, m.Failure) and reply.sqlstate == "53100", reply
        assert "No space left" in reply.message
        self._count("53100")

    def _dropped(self, table_id: int) -> None:
        self.dropping.discard(table_id)
        self.tables.pop(table_id, None)
        self.wanted.pop(table_id, None)
        for range_ in RANGES:
            self.book.history.pop((range_.id, table_id), None)

    # --- after a crash

    def crashed(self) -> int:
        """The process is gone, with all that was not answered. The newest timestamp."""
        self._hear()
        for client in self.clients:
            client.waiting = []
        return self.now

    def recover(self, life: Life) -> None:
        """The next process is there: what is open ends, and everything is as promised."""
        self.life = life
        for range_id, index in self.indexes.items():
            assert life.node.engine.last_index(range_id) >= index, "an index is used again"
        # Those of one phase first: what they did is done. This, too, may be ended by a crash.
        for client in sorted(self.clients, key=lambda client: client.single is None):
            client.session.life = life
            self._recover(client)
            self.clients.remove(client)
        self.begin(life)

    def _recover(self, client: Client) -> None:
        session = client.session
        found = {range_.id: self._outcome(session, range_) for range_ in RANGES}
        prepared = {range_id: o.ts for range_id, o in found.items() if o.state == "prepared"}
        if client.single is not None:
            outcome = found[client.single.id]
            assert outcome.state in ("committed", "unknown"), (outcome, client.state)
            if outcome.state == "committed":
                self.book.commit(client.writes + client.sent, outcome.ts)
            return
        assert prepared.keys() <= client.asked.keys(), (found, client.state)
        for range_id, answered in client.asked.items():
            if answered and (client.decision is None or not client.asked):
                assert prepared.get(range_id) == answered, (found, client.state)
        if client.decision is None:
            everywhere = prepared.keys() == session.states.keys() and bool(prepared)
            client.decision = 0
            if everywhere and self.rng.random() < 0.5:
                client.decision = max(prepared.values())
                self.book.commit(client.writes, client.decision)
        elif client.decision:
            for range_id in client.asked:
                ended = found[range_id] == m.Outcome("committed", client.decision)
                assert range_id in prepared or ended, (found, client.state)
                assert ended or range_id not in client.told, (found, client.state)
        if self.rng.random() < 0.5:
            self.check_rows(self.clients)
        for range_id in prepared:
            message = m.Decide(range_id, session.id, client.decision)
            assert self.life.reply(message) == m.Ack()

    def _outcome(self, session: Session, range_: Range) -> m.Outcome:
        if range_.id not in self.life.node.ranges:
            return m.Outcome("unknown", 0)
        reply = self.life.reply(m.QueryOutcome(range_.id, session.id, False))
        assert isinstance(reply, m.Outcome), reply
        return reply

    # --- what must hold

    def check(self) -> None:
        """REQUIRES: nothing is open or under way."""
        life = self.life
        assert not life.node.prepared_states() and not len(life.node.locks)
        self.check_rows()
        assert life.files() == life.named(), (life.files(), life.named())
        engine = life.node.engine
        state = engine.manifest.current
        for key, tablet in engine.tablets.items():
            assert state.tablets[key].flushed_index == tablet.settled_index
            assert state.tablets[key].flushed_index <= engine.last_index(key[0])
            assert {m_.number for m_ in tablet.metas} == {m_.number for m_ in state.runs(*key)}
        assert {key for key in engine.tablets} == {
            (range_.id, table_id) for range_ in RANGES for table_id in self.tables
        }

    def check_rows(self, open_clients: Sequence[Client] = ()) -> None:
        """Rows and scans at several snapshots are as in the book.

        But for `open_clients`, whose decisions may be in the book and not yet in the node.
        """
        hidden = {(w[1], w[2]) for client in open_clients for w in client.writes}
        for table in self.tables.values():
            for range_ in RANGES:
                place = range_.id, table.id
                tablet = self.life.local(range_).tablets.get(table.id)
                if tablet is None:
                    continue
                times = [ts for ts in self.book.timestamps(place) if ts >= tablet.gc_ts]
                times += [ts - 1 for ts in times if ts > tablet.gc_ts]
                some = self.rng.sample(times, min(len(times), 4))
                for ts in (max(tablet.gc_ts, 1), *some, 2**64 - 1):
                    wanted = self.book.at(place, table, ts)
                    for read in (self.life.rows, self.life.scanned):
                        found = read(range_, table, ts)
                        if hidden:
                            keys = wanted.keys() | found.keys()
                            keys -= {ident for at, ident in hidden if at == place}
                            assert {k: found.get(k) for k in keys} == {
                                k: wanted.get(k) for k in keys
                            }
                        else:
                            assert found == wanted, (read.__name__, place, ts, tablet.gc_ts)
