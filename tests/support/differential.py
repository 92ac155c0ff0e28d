"""Random statements run on shardb and on PostgreSQL alike, with kill -9 of shards in between.

A `Workload` makes units: a statement, or a transaction. A unit goes to shardb first; if a killed
shard ends it, it is rolled back and run again, and where nobody knows its outcome the mark that
each transaction leaves tells. Then PostgreSQL runs it, and every statement must have given the
same rows, tag or error on both.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.support.cluster import Cluster
from tests.support.server import Server

Connection = psycopg.Connection[tuple[Any, ...]]
LOST = ("08", "57P0", "40001", "SH")  # beginnings of SQLSTATEs that a killed process may cause
ATTEMPTS_MAX = 12
KIB = 1024
SMALL_LIMITS = {  # of `Cluster`: everything is flushed, merged and cut off the log at once
    "MEMTABLE_MAX_BYTES": 128 * KIB,
    "INGEST_MIN_BYTES": 32 * KIB,
    "SEGMENT_TARGET_BYTES": 256 * KIB,
    "SEGMENT_GROUP_ROWS": 700,
    "BULK_BATCH_BYTES": 64 * KIB,
    "BULK_ROWS_MIN": 500,
    "LOG_FILE_TARGET_BYTES": 1024 * KIB,
    "LOG_UNSETTLED_MAX_BYTES": 512 * KIB,
    "MAINTENANCE_TICK_MS": 20,
}
KEY_MAX = 1_000_000
SPLITS = (250_000, 500_000)
LAYOUTS_MAX = 40  # changes of columns between two TRUNCATEs
SETUP = (
    "DROP TABLE IF EXISTS t, pairs, keyless, marks",
    "CREATE TABLE marks (unit int PRIMARY KEY)",
    "CREATE TABLE t (id int PRIMARY KEY, grp int, n bigint, txt text, amount numeric(12,2)){}",
    "CREATE TABLE pairs (a text, b int, v int, PRIMARY KEY (b, a)){}",
    "CREATE TABLE keyless (id int, v text)",
)
CONTENTS = (
    "SELECT * FROM t ORDER BY id",
    "SELECT a, b, v FROM pairs ORDER BY b, a",
    "SELECT id, v, count(*) FROM keyless GROUP BY id, v ORDER BY id, v",
    "SELECT count(*), sum(id), sum(n), sum(amount), min(txt), max(txt) FROM t",
    "SELECT grp, count(*), sum(n) FROM t GROUP BY grp ORDER BY grp",
)


@dataclass
class Unit:
    """Statements, each a string, or (COPY statement, data). A transaction unless `alone`."""

    steps: list[str | tuple[str, str]]
    alone: bool = False
    commit: bool = True
    changes_schema: bool = False


@dataclass
class Workload:
    """Makes units; what it knows of the tables is only where rows may be."""

    seed: int
    bulk_rows: int = 3000  # of the largest inserts
    added: list[str] = field(default_factory=list)  # columns of t beside the first
    next_column: int = 0
    layouts: int = 0

    def __post_init__(self) -> None:
        self.choice = random.Random(self.seed)

    def unit(self) -> Unit:
        """The next unit."""
        kinds: list[tuple[int, Callable[[], Unit]]] = [
            (30, self._one),
            (8, self._bulk_alone),
            (30, self._transaction),
            (6, self._savepoints),
            (4, self._alter),
            (1, self._truncate),
        ]
        pick = self.choice.choices([kind for _, kind in kinds], [weight for weight, _ in kinds])
        return pick[0]()

    def contents(self) -> list[str]:
        """Queries for all there is."""
        return list(CONTENTS)

    # --- units

    def _one(self) -> Unit:
        return Unit([self._statement()], alone=True)

    def _bulk_alone(self) -> Unit:
        return Unit([self._bulk()], alone=True)

    def _transaction(self) -> Unit:
        steps: list[str | tuple[str, str]] = []
        for _ in range(self.choice.randint(1, 8)):
            steps.append(self._bulk() if self.choice.random() < 0.25 else self._statement())
            if self.choice.random() < 0.5:
                steps.append(self._read())
        return Unit(steps, commit=self.choice.random() < 0.85)

    def _savepoints(self) -> Unit:
        steps: list[str | tuple[str, str]] = [self._statement(), "SAVEPOINT a", self._bulk()]
        steps += [self._read(), "SAVEPOINT b", self._statement(), self._bulk(), self._read()]
        steps.append(self.choice.choice(["ROLLBACK TO b", "ROLLBACK TO a", "RELEASE a"]))
        steps += [self._read(), self._bulk(), self._statement(), self._read()]
        return Unit(steps, commit=self.choice.random() < 0.85)

    def _alter(self) -> Unit:
        if self.layouts >= LAYOUTS_MAX:
            return self._truncate()
        self.layouts += 1
        if self.added and self.choice.random() < 0.4:
            gone = self.added.pop(self.choice.randrange(len(self.added)))
            return Unit([f"ALTER TABLE t DROP COLUMN {gone}"], alone=True, changes_schema=True)
        name = f"c{self.next_column}"
        self.next_column += 1
        self.added.append(name)
        what = self.choice.choice(["int DEFAULT 7", "text DEFAULT 'was not there'", "int"])
        return Unit([f"ALTER TABLE t ADD COLUMN {name} {what}"], alone=True, changes_schema=True)

    def _truncate(self) -> Unit:
        self.layouts = 0
        return Unit(["TRUNCATE t"], alone=True, changes_schema=True)

    # --- statements

    def _key(self) -> int:
        """A key; keys come in a few dense places, so that statements meet each other's rows."""
        place = self.choice.randrange(0, KEY_MAX, KEY_MAX // 10)
        return place + self.choice.randrange(self.bulk_rows * 2)

    def _interval(self) -> tuple[int, int]:
        low = self._key()
        return low, low + self.choice.choice([3, 50, 1000, KEY_MAX // 3])

    def _row(self, key: int) -> str:
        text = self.choice.choice(["NULL", f"'{'y' * self.choice.randrange(60)}{key}'"])
        amount = f"{self.choice.randrange(10**6)}.{self.choice.randrange(10):02}"
        return f"({key}, {key % 17}, {self.choice.randrange(10**9)}, {text}, {amount})"

    def _statement(self) -> str:
        makers = [self._insert, self._upsert, self._update, self._update, self._delete]
        return self.choice.choice([*makers, self._pairs, self._keyless, self._read])()

    def _insert(self) -> str:
        keys = {self._key() for _ in range(self.choice.choice([1, 1, 3, 20]))}
        rows = ", ".join(map(self._row, sorted(keys)))
        ignore = self.choice.choice([" ON CONFLICT DO NOTHING", ""])
        return f"INSERT INTO t (id, grp, n, txt, amount) VALUES {rows}{ignore}"

    def _upsert(self) -> str:
        return (
            f"INSERT INTO t (id, grp, n, txt, amount) VALUES {self._row(self._key())} "
            "ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n, txt = excluded.txt "
            "RETURNING id, grp, n, txt, amount"
        )

    def _update(self) -> str:
        low, high = self._interval()
        changed = self.choice.choice(
            ["n = n + 1", "txt = 'set'", "grp = grp + 1, amount = amount + 0.5", "txt = NULL"]
        )
        if self.added and self.choice.random() < 0.3:
            changed = f"{self.choice.choice(self.added)} = NULL"
        where = self.choice.choice(
            [
                f"id = {low}",
                f"id IN ({low}, {high}, {self._key()})",
                f"id BETWEEN {low} AND {high}",
                f"grp = {self.choice.randrange(17)} AND id > {low}",
                f"n % 7 = {self.choice.randrange(7)}",
            ]
        )
        return f"UPDATE t SET {changed} WHERE {where}"

    def _delete(self) -> str:
        low, high = self._interval()
        where = self.choice.choice(
            [
                f"id = {low}",
                f"id >= {low} AND id < {min(high, low + 1000)}",
                f"grp = {self.choice.randrange(17)} AND n % 3 = 0",
            ]
        )
        return f"DELETE FROM t WHERE {where}"

    def _pairs(self) -> str:
        low = self._key()
        return self.choice.choice(
            [
                f"INSERT INTO pairs SELECT txt, id, grp FROM t WHERE txt IS NOT NULL AND "
                f"id BETWEEN {low} AND {low + 500} ON CONFLICT DO NOTHING",
                f"DELETE FROM pairs WHERE b >= {low} AND b < {low + 300}",
                f"UPDATE pairs SET v = v + 1 WHERE b > {low}",
                f"UPDATE pairs SET a = a || '+' WHERE b BETWEEN {low} AND {low + 20}",
                f"SELECT a, b, v FROM pairs WHERE b >= {low} ORDER BY b, a LIMIT 5",
            ]
        )

    def _keyless(self) -> str:
        low = self._key()
        return self.choice.choice(
            [
                f"INSERT INTO keyless VALUES ({low}, 'one'), ({low}, 'one'), ({low + 1}, NULL)",
                f"INSERT INTO keyless SELECT id, txt FROM t WHERE id BETWEEN {low} AND {low + 99}",
                f"UPDATE keyless SET v = 'two' WHERE id < {low} AND v IS NULL",
                f"DELETE FROM keyless WHERE id > {low + self.bulk_rows} AND v IS NOT NULL",
                "SELECT v, count(*) FROM keyless GROUP BY v ORDER BY v NULLS FIRST LIMIT 20",
            ]
        )

    def _bulk(self) -> str | tuple[str, str]:
        """A large insert; it fails if it meets a row."""
        first = self._key()
        count = self.choice.choice([10, 600, self.bulk_rows, self.bulk_rows])
        if self.choice.random() < 0.5:
            return (
                "INSERT INTO t (id, grp, n, txt, amount) SELECT i, i % 17, i * 10, 'bulk' || i, "
                f"i / 4.0 FROM generate_series({first}, {first + count - 1}) AS s(i)"
            )
        keys = list(range(first, first + count))
        if self.choice.random() < 0.3:
            self.choice.shuffle(keys)
        if self.choice.random() < 0.05:
            keys.append(self.choice.choice(keys))
        lines = [f"{key}\t{key % 17}\t{key * 3}\tcopied {key}\t{key}.25\n" for key in keys]
        return "COPY t (id, grp, n, txt, amount) FROM STDIN", "".join(lines)

    def _read(self) -> str:
        low, high = self._interval()
        order = self.choice.choice(["", " DESC"])
        columns = ", ".join(["id", "n", "txt", "amount", *self.added[-2:]])
        return self.choice.choice(
            [
                f"SELECT {columns} FROM t WHERE id = {low}",
                f"SELECT {columns} FROM t WHERE id IN ({low}, {low + 1}, {high}) ORDER BY id",
                f"SELECT {columns} FROM t WHERE id >= {low} ORDER BY id{order} LIMIT 7",
                f"SELECT {columns} FROM t WHERE id < {high} ORDER BY id{order} LIMIT 7 OFFSET 3",
                f"SELECT {columns} FROM t WHERE id BETWEEN {low} AND {high} ORDER BY id{order}",
                f"SELECT {columns} FROM t WHERE n % 11 = 3 ORDER BY n{order}, id LIMIT 20",
                "SELECT count(*), sum(n), min(id), max(id), sum(amount), count(txt) FROM t",
                f"SELECT grp, count(*), max(n) FROM t WHERE id > {low} GROUP BY grp ORDER BY grp",
                f"SELECT count(*) FROM t WHERE id BETWEEN {low} AND {high}",
                "SELECT count(*), sum(v), min(a), max(b) FROM pairs",
                "SELECT count(*) FROM t JOIN pairs ON pairs.b = t.id WHERE t.grp < 5",
            ]
        )


class Lost(Exception):
    """A killed process ended the unit; `unknown`: it may have committed."""

    def __init__(self, unknown: bool) -> None:
        self.unknown = unknown


class Differential:
    """Runs units on both servers and compares.

    Once a process has been killed, single statements are run as transactions: a mark has to tell
    what became of them. Schema changes have no mark, so that nothing is killed while they run.
    """

    def __init__(self, cluster: Cluster, postgres: Server, workload: Workload) -> None:
        self.cluster = cluster
        self.workload = workload
        self.ours = cluster.connect()
        self.theirs = postgres.connect()
        self.units = 0
        self.kills = 0
        self.again = 0
        for statement in SETUP:
            splits = f" WITH (split_at = '{SPLITS[0]}, {SPLITS[1]}')"
            self.ours.execute(statement.format(splits if "{}" in statement else ""))
            self.theirs.execute(statement.format(""))

    def step(self, kill: Callable[[], None] | None = None) -> None:
        """Runs the next unit; `kill` is called in a thread while it runs, or before it."""
        unit = self.workload.unit()
        self.units += 1
        timer: threading.Timer | None = None
        if kill is not None:
            self.kills += 1
            if unit.changes_schema:
                kill()
            else:
                timer = threading.Timer(self.workload.choice.random() * 0.05, kill)
                timer.start()
        ours = self._run_to_the_end(unit)
        if timer is not None:
            timer.join()
        theirs = self._run(self.theirs, unit)
        for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert one == other, self._explained(unit, at, one, other)

    def compare(self) -> None:
        """Whole tables have to be the same."""
        for query in self.workload.contents():
            ours = self._patiently(lambda query=query: self.ours.execute(query).fetchall())
            theirs = self.theirs.execute(query).fetchall()
            assert ours == theirs, f"seed {self.workload.seed}, {self.units} units: {query}" + (
                _difference(ours, theirs)
            )

    def reconnect(self) -> None:
        """The cluster has been started again."""
        self.ours.close()
        self.ours = self._patiently(self.cluster.connect)

    def close(self) -> None:
        """Drops the tables and ends both connections."""
        self.ours.execute(SETUP[0])
        self.ours.close()
        self.theirs.close()

    # --- one unit

    def _run_to_the_end(self, unit: Unit) -> list[Any]:
        for _ in range(ATTEMPTS_MAX):
            try:
                return self._run(self.ours, unit)
            except Lost as lost:
                self.again += 1
                self._rolled_back()
                if lost.unknown and self._patiently(self._is_marked):
                    return [*self._results, "COMMIT"]
        raise AssertionError(f"seed {self.workload.seed}: unit {self.units} is lost for ever")

    def _run(self, connection: Connection, unit: Unit) -> list[Any]:
        """The outcomes of the statements. Lost if a killed process is to blame for one."""
        self._results: list[Any] = []
        results = self._results
        if unit.alone and (unit.changes_schema or not self.kills):
            results.append(self._outcome(connection, unit.steps[0]))
            return results
        results.append(self._outcome(connection, "BEGIN"))
        for step in unit.steps:
            results.append(self._outcome(connection, step))
        results.append(self._outcome(connection, f"INSERT INTO marks VALUES ({self.units})"))
        results.append(self._outcome(connection, "COMMIT" if unit.commit else "ROLLBACK"))
        return results

    def _outcome(self, connection: Connection, step: str | tuple[str, str]) -> Any:
        try:
            if isinstance(step, tuple):
                with connection.cursor() as cursor:
                    with cursor.copy(step[0]) as copy:
                        copy.write(step[1])
                    return cursor.statusmessage
            cursor = connection.execute(step)
            if cursor.description is None:
                return cursor.statusmessage
            rows = cursor.fetchall()
            return rows if "ORDER BY" in step else sorted(rows, key=repr)
        except psycopg.Error as error:
            state = error.sqlstate or "08000"
            if connection is self.ours and state.startswith(LOST):
                unknown = step == "COMMIT" and state != "40001"
                raise Lost(unknown) from error
            return state, error.diag.message_primary

    def _is_marked(self) -> bool:
        found = self.ours.execute("SELECT 1 FROM marks WHERE unit = %s", (self.units,)).fetchall()
        return bool(found)

    def _rolled_back(self) -> None:
        if self.ours.closed or self.ours.broken:
            self.ours = self._patiently(self.cluster.connect)
        else:
            self._patiently(lambda: self.ours.execute("ROLLBACK"))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        """The result of a call, once the cluster is up again."""
        end = time.monotonic() + 30
        while True:
            try:
                return call()
            except psycopg.Error as error:
                if time.monotonic() > end or not (error.sqlstate or "08000").startswith(LOST):
                    raise
                time.sleep(0.1)

    def _explained(self, unit: Unit, at: int, one: Any, other: Any) -> str:
        steps = [step if isinstance(step, str) else step[0] for step in unit.steps]
        shown = f"seed {self.workload.seed}, unit {self.units}, result {at} of {steps}"
        if isinstance(one, list) and isinstance(other, list):
            return shown + _difference(one, other)
        return f"{shown}:\n{str(one)[:500]}\nin PostgreSQL {str(other)[:500]}"


def _difference(ours: list[Any], theirs: list[Any]) -> str:
    only_ours = [row for row in ours if row not in set(theirs)][:5]
    only_theirs = [row for row in theirs if row not in set(ours)][:5]
    return f"\n{len(ours)} rows, in PostgreSQL {len(theirs)}; only {only_ours}, {only_theirs}"
