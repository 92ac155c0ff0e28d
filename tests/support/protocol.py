"""Transcripts of the commit protocol: real participants and coordinators, one event at a time.

A script says what happens; the transcript shows what each part then does. Ranges are `A`, `B`, ...,
each a participant over a log in memory of its own; coordinators are `X`, `Y`. Nothing is delivered
and no log is synced until the script says so. Timestamps are shown as `oracle.offset`.

    begin T [serializable] [by Y]        a transaction of coordinator X (or another)
    write T A key=value                  one statement on a range
    read T A key                         a read of a serializable transaction, noted as a span
    commit T | rollback T | rollback T to N
    look A key                           a reader without a transaction: the newest committed
    deliver | deliver N | lose N | duplicate N       messages by number; without one: all there are
    sync A [full]                        the log of A is durable, or the disk was full
    run                                  deliver and sync until nothing is left to do
    crash A | restart A | crash X        what is not durable is lost
    ask A T [record]                     A asks the other participants of what it has prepared
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from shardb.errors import SqlError, StorageError
from shardb.rpc import messages as m
from shardb.txn import coordinator as two_phase
from shardb.txn import records
from shardb.txn.locks import LockTable
from shardb.txn.oracle import STEP
from shardb.txn.participant import Participant
from shardb.txn.recovery import Recovery
from shardb.txn.replay import replay_commit, replay_outcome, replay_prepare
from shardb.txn.state import State
from tests.support.participants import Host

TABLE = 7
KINDS = {
    records.COMMIT: "commit",
    records.PREPARE: "prepare",
    records.DECIDE: "decide",
    records.ABORT: "abort",
}


def shown(ts: int) -> str:
    return f"{ts // STEP}.{ts % STEP}" if ts else "-"


class RangeHost(Host):
    """Says what is logged, and keeps apart what is durable."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self.name = name
        self.say = say
        self.durable = 0

    def persist(
        self, kind: int, payload: bytes, done: Callable[..., None], lazy: bool = False
    ) -> None:
        self.say(f"{self.name} appends {self.record(kind, payload)}")
        super().persist(kind, payload, done, lazy)

    def sync(self, error: StorageError | None) -> None:
        """All records are durable, or all of them failed."""
        waiting = list(self.waiting)
        self.waiting.clear()
        if error is None:
            self.durable = len(self.log)
        else:
            del self.log[self.durable :]
        for done in waiting:
            done(error)

    @staticmethod
    def record(kind: int, payload: bytes) -> str:
        txn = records.txn_id_of(payload).strip(b"\0").decode()
        if kind == records.COMMIT:
            return f"commit {txn} at {shown(records.decode_commit(payload).commit_ts)}"
        if kind == records.PREPARE:
            prepare = records.decode_prepare(payload)
            spans = f", {len(prepare.spans)} spans" if prepare.spans else ""
            return f"prepare {txn} at {shown(prepare.min_commit_ts)} or later{spans}"
        outcome = records.decode_outcome(payload)
        if kind == records.DECIDE and outcome.ts:
            return f"decide {txn} at {shown(outcome.ts)}"
        return f"{KINDS[kind]} {txn}" + (" to abort" if kind == records.DECIDE else "")


@dataclass
class Part:
    """A transaction on a range, as its coordinator knows it."""

    state_id: int = 0
    statements: list[int] = field(default_factory=list)
    spans: list[m.Span] = field(default_factory=list)


@dataclass
class Transaction:
    name: str
    coordinator: str
    serializable: bool
    snapshot_ts: int
    statement: int = 1
    parts: dict[str, Part] = field(default_factory=dict)
    machine: two_phase.TwoPhaseCommit | None = None
    order: list[str] = field(default_factory=list)

    @property
    def txn_id(self) -> bytes:
        return self.name.encode().ljust(16, b"\0")


@dataclass
class InFlight:
    number: int
    text: str
    deliver: Callable[[], None]
    to: str


class Stage:
    """Carries out the lines of a script; `lines` are what happened."""

    def __init__(self, ranges: str = "ABC") -> None:
        self.lines: list[str] = []
        self.flight: list[InFlight] = []
        self.issued = STEP
        self.numbers = 0
        self.transactions: dict[str, Transaction] = {}
        self.gone: set[str] = set()
        self.lives: dict[str, int] = dict.fromkeys(ranges, 1)
        self.hosts: dict[str, RangeHost] = {}
        self.ranges: dict[str, Participant] = {}
        for name in ranges:
            self.hosts[name] = RangeHost(name, self.say)
            self.ranges[name] = self._participant(name)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def _participant(self, name: str) -> Participant:
        found = Participant(ord(name), self.hosts[name], LockTable())
        found.fence(self.issue())
        return found

    def issue(self) -> int:
        self.issued += STEP
        return self.issued

    def send(self, origin: str, to: str, text: str, deliver: Callable[[], None]) -> None:
        self.numbers += 1
        self.say(f"{origin} sends {to} {text} ({self.numbers})")
        life = self.lives.get(to, 0)

        def arrive() -> None:
            if to in self.gone or self.lives.get(to, 0) != life:
                self.say(f"{text} finds no {to}")
            else:
                deliver()

        self.flight.append(InFlight(self.numbers, text, arrive, to))

    # --- commands

    def carry_out(self, line: str) -> None:
        """One line of a script."""
        words = line.split()
        getattr(self, f"do_{words[0]}")(*words[1:])

    def do_begin(self, name: str, *options: str) -> None:
        coordinator = options[options.index("by") + 1] if "by" in options else "X"
        serializable = "serializable" in options
        self.transactions[name] = Transaction(name, coordinator, serializable, self.issue())

    def do_write(self, name: str, at: str, pair: str) -> None:
        txn = self.transactions[name]
        key, _, value = pair.partition("=")
        part = txn.parts.setdefault(at, Part())
        txn.statement += 1
        ref = m.TxnRef(txn.txn_id, part.state_id, txn.statement, self.issue())
        state = self.ranges[at].enter(ref, txn.coordinator)
        if not isinstance(state, State):
            self.say(f"{at} does not know {name} any more")
            return
        state.put(txn.statement, TABLE, key.encode(), value.encode() if value else None)
        state.statements.add(txn.statement)
        part.state_id = state.state_id
        part.statements.append(txn.statement)
        self.say(f"{at} keeps {key}={value} of {name}, statement {txn.statement}")

    def do_read(self, name: str, at: str, key: str) -> None:
        txn = self.transactions[name]
        part = txn.parts.setdefault(at, Part())
        part.spans.append(m.Span(TABLE, key.encode(), key.encode() + b"\0"))
        self.ranges[at].note(self.issued)
        self.ranges[at].read_at(txn.snapshot_ts, 0)
        versions = self.hosts[at].rows.get((TABLE, key.encode()), [])
        seen = [row for ts, row in versions if ts <= txn.snapshot_ts]
        value = (seen[-1] if seen else None) or b"nothing"
        self.say(f"{name} reads {key}={value.decode()} at {shown(txn.snapshot_ts)}")

    def do_look(self, at: str, key: str) -> None:
        blocker = self.ranges[at].blocking(TABLE, [key.encode()], None, 0, None)
        if blocker is not None:
            self.say(f"a reader of {key} waits for {blocker.txn_id.strip(bytes(1)).decode()}")
            return
        versions = self.hosts[at].rows.get((TABLE, key.encode()), [])
        value = (versions[-1][1] if versions else None) or b"nothing"
        self.say(f"a reader finds {key}={value.decode()}")

    def do_rollback(self, name: str, to: str = "", number: str = "0") -> None:
        txn = self.transactions[name]
        statement = int(number)
        for at, part in txn.parts.items():
            part.statements = [number for number in part.statements if number <= statement]
            message = m.Rollback(ord(at), txn.txn_id, part.state_id, statement)
            text = f"ROLLBACK {name}" + (f" to {statement}" if statement else "")
            self.send(
                txn.coordinator, at, text, lambda at=at, message=message: self._roll(at, message)
            )  # type: ignore[misc]

    def _roll(self, at: str, message: m.Rollback) -> None:
        reply = self.ranges[at].rollback(message)
        self.say(f"{at} " + ("takes it back" if isinstance(reply, m.Ack) else "has nothing of it"))

    def do_commit(self, name: str) -> None:
        txn = self.transactions[name]
        txn.order = list(txn.parts)
        if len(txn.order) == 1:
            at = txn.order[0]
            part = txn.parts[at]
            message = m.CommitOne(
                ord(at),
                m.TxnRef(txn.txn_id, part.state_id, txn.statement, self.issue()),
                tuple(part.statements),
                0,
                self.issued,
                txn.snapshot_ts if txn.serializable else 0,
                tuple(part.spans),
            )
            self.send(
                txn.coordinator, at, f"COMMIT {name}", lambda: self._commit_one(txn, at, message)
            )
            return
        txn.machine = two_phase.TwoPhaseCommit(len(txn.order))
        participants = tuple(
            m.Participant(ord(at), ord(at), b"", txn.parts[at].state_id) for at in txn.order
        )
        issued = self.issue()
        for index, at in enumerate(txn.order):
            part = txn.parts[at]
            prepare = m.Prepare(
                ord(at),
                m.TxnRef(txn.txn_id, part.state_id, txn.statement, issued),
                tuple(part.statements),
                participants,
                0,
                issued,
                txn.snapshot_ts if txn.serializable else 0,
                tuple(part.spans),
            )
            text = f"PREPARE {name} of {'+'.join(txn.order)}"
            self.send(txn.coordinator, at, text, self._preparing(txn, index, at, prepare))

    def _commit_one(self, txn: Transaction, at: str, message: m.CommitOne) -> None:
        def reply(answer: m.Message) -> None:
            text = self._text(answer)

            def arrive() -> None:
                if isinstance(answer, m.Committed):
                    self.say(f"client of {txn.name}: committed at {shown(answer.commit_ts)}")
                else:
                    self.say(f"client of {txn.name}: {text}")

            self.send(at, txn.coordinator, f"{text} ({txn.name})", arrive)

        self.ranges[at].commit_message(message, reply)

    def _preparing(
        self, txn: Transaction, index: int, at: str, prepare: m.Prepare
    ) -> Callable[[], None]:
        def reply(answer: m.Message) -> None:
            def arrive() -> None:
                assert txn.machine is not None
                if isinstance(answer, m.Prepared):
                    effects = txn.machine.prepared(index, answer.min_commit_ts)
                elif isinstance(answer, m.Failure) and answer.aborted:
                    effects = txn.machine.refused(index)
                else:
                    effects = txn.machine.lost(index)
                self._effects(txn, effects)

            self.send(at, txn.coordinator, f"{self._text(answer)} ({txn.name})", arrive)

        return lambda: self.ranges[at].prepare(prepare, reply)

    def _effects(self, txn: Transaction, effects: list[two_phase.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, two_phase.Report):
                ts = effect.commit_ts
                told = "not known (08007)" if ts is None else f"committed at {shown(ts)}"
                self.say(f"client of {txn.name}: " + (told if ts != 0 else "aborted (40001)"))
            elif isinstance(effect, two_phase.Tell):
                at = txn.order[effect.participant]
                ts = effect.commit_ts
                text = f"DECIDE {txn.name} " + (f"commit at {shown(ts)}" if ts else "abort")
                self.send(txn.coordinator, at, text, self._deciding(txn, at, ts))
            else:
                self._question(txn.coordinator, txn, effect.participant, True, None)

    def _deciding(self, txn: Transaction, at: str, commit_ts: int) -> Callable[[], None]:
        def told(answer: m.Message) -> None:
            self.say(f"{at} acknowledges the outcome of {txn.name}")

        return lambda: self.ranges[at].decide(txn.txn_id, commit_ts, told)

    def do_lost(self, name: str, at: str) -> None:
        """The coordinator hears that an answer will not come."""
        txn = self.transactions[name]
        assert txn.machine is not None
        self._effects(txn, txn.machine.lost(txn.order.index(at)))

    def _question(
        self, asker: str, txn: Transaction, index: int, record: bool, recovery: Recovery | None
    ) -> None:
        at = txn.order[index]
        text = f"QUERY {txn.name}" + (", recording" if record else "")

        def reply(answer: m.Message) -> None:
            def arrive() -> None:
                assert isinstance(answer, m.Outcome)
                if recovery is not None:
                    self._recovered(asker, txn, recovery.answer(index, answer))
                    return
                assert txn.machine is not None
                step = {
                    "prepared": lambda: txn.machine.prepared(index, answer.ts),  # type: ignore[union-attr]
                    "committed": lambda: txn.machine.committed(index, answer.ts),  # type: ignore[union-attr]
                    "aborted": lambda: txn.machine.refused(index),  # type: ignore[union-attr]
                }[answer.state]
                self._effects(txn, step())

            self.send(at, asker, f"{self._text(answer)} ({txn.name})", arrive)

        message = m.QueryOutcome(ord(at), txn.txn_id, record)
        self.send(asker, at, text, lambda: self.ranges[at].query(message, reply))

    def do_ask(self, at: str, name: str, record: str = "") -> None:
        txn = self.transactions[name]
        state = self.ranges[at].prepared[txn.txn_id]
        recovery = Recovery(len(state.participants))
        recovery.answer(txn.order.index(at), m.Outcome("prepared", state.min_commit_ts))
        for index, other in enumerate(txn.order):
            if other != at:
                self._question(at, txn, index, bool(record), recovery)

    def _recovered(self, at: str, txn: Transaction, commit_ts: int | None) -> None:
        state = self.ranges[at].states.get(txn.txn_id)
        if commit_ts is None or state is None:
            return
        self.say(f"{at} finds {txn.name} " + (shown(commit_ts) if commit_ts else "aborted"))
        self.ranges[at].decide(txn.txn_id, commit_ts, lambda _: None)

    # --- the world

    def do_deliver(self, number: str = "") -> None:
        due = [item for item in self.flight if not number or item.number == int(number)]
        assert due or not number, f"no message {number} is under way"
        for item in due:
            self.flight.remove(item)
            if item.to in self.hosts or item.to not in self.gone:
                item.deliver()

    def do_lose(self, number: str) -> None:
        self.flight = [item for item in self.flight if item.number != int(number)]

    def do_duplicate(self, number: str) -> None:
        found = next(item for item in self.flight if item.number == int(number))
        self.numbers += 1
        self.flight.append(InFlight(self.numbers, found.text, found.deliver, found.to))
        self.say(f"{found.text} comes a second time ({self.numbers})")

    def do_sync(self, at: str, full: str = "") -> None:
        self.hosts[at].sync(StorageError("53100", "disk full") if full else None)

    def do_run(self) -> None:
        while self.flight or any(host.waiting for host in self.hosts.values()):
            self.do_deliver()
            for host in self.hosts.values():
                host.sync(None)

    def do_crash(self, name: str) -> None:
        if name not in self.hosts:
            self.gone.add(name)
            for participant in self.ranges.values():
                participant.lose(name)
            return
        self.lives[name] += 1
        self.gone.add(name)
        host = self.hosts[name]
        lost = [host.record(*item) for item in host.log[host.durable :]]
        for record in lost:
            self.say(f"{name} loses {record}")

    def do_restart(self, name: str) -> None:
        host = self.hosts[name]
        del host.log[host.durable :]
        host.waiting.clear()
        host.rows = {}
        self.gone.discard(name)
        participant = self._participant(name)
        for kind, payload in host.log:
            if kind == records.COMMIT:
                commit = records.decode_commit(payload)
                for section in commit.sections:
                    self._put(host, section, commit.commit_ts)
                replay_commit(participant, commit._replace(sections=[]))
            elif kind == records.PREPARE:
                replay_prepare(participant, records.decode_prepare(payload))
            else:
                replay_outcome(participant, records.decode_outcome(payload), kind)
        self.ranges[name] = participant
        doubt = [txn.strip(b"\0").decode() for txn in participant.prepared]
        self.say(f"{name} is back" + (f", in doubt of {', '.join(doubt)}" if doubt else ""))

    @staticmethod
    def _put(host: Host, section: records.Section, commit_ts: int) -> None:
        from shardb._core.frames import split_items

        keys = split_items(section.keys, section.count)
        rows = (
            [None] * len(keys) if section.rows is None else split_items(section.rows, section.count)
        )
        host.apply(section.table_id, dict(zip(keys, rows, strict=True)), commit_ts)

    @staticmethod
    def _text(answer: m.Message) -> str:
        if isinstance(answer, m.Prepared):
            return f"prepared at {shown(answer.min_commit_ts)}"
        if isinstance(answer, m.Committed):
            return f"committed at {shown(answer.commit_ts)}"
        if isinstance(answer, m.Outcome):
            return f"{answer.state}" + (f" at {shown(answer.ts)}" if answer.ts else "")
        assert isinstance(answer, m.Failure)
        return f"{answer.sqlstate}" + (", certainly aborted" if answer.aborted else "")


def transcript(script: str) -> str:
    """The script with what happened after each line. Comments are kept; old output is dropped."""
    stage = Stage()
    out: list[str] = []
    for line in script.splitlines():
        if line.startswith("    "):
            continue
        out.append(line.rstrip())
        if line.strip() and not line.startswith("#"):
            stage.lines.clear()
            try:
                stage.carry_out(line)
            except SqlError as error:
                stage.say(f"{error.sqlstate}: {error.message}")
            out += [f"    {said}" for said in stage.lines]
    return "\n".join(out) + "\n"
