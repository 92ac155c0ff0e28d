"""Registers: single rows written, read and compared-and-set by lone statements; linearizable.

The search is Wing and Gong's, with Lowe's memory of what has been tried (as in porcupine), a key at
a time. A statement of unknown outcome may take effect at any later time, or never.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from tests.sim.history import FAILED, OK, Client, Operation
from tests.sim.workload import Workload, split_at

KEYS_AT_ONCE: Final = 4
STEPS_PER_KEY: Final = 60
KEYS: Final = 200
TRIED_MAX: Final = 200_000  # then the key is left undecided
NEVER: Final = 1 << 62


@dataclass(frozen=True)
class Step:
    """`kind` is read, write or cas; a read has what it saw in `new`, a cas may have changed."""

    kind: str
    begun_ns: int
    ended_ns: int  # NEVER if the outcome is unknown
    old: int = 0
    new: int | None = None
    changed: bool | None = None

    def apply(self, value: int | None) -> tuple[bool, int | None]:
        """Whether the answer fits this value, and the value after it."""
        if self.kind == "read":
            return self.new == value, value
        if self.kind == "write":
            return True, self.new
        hit = value == self.old
        if self.changed is not None and hit != self.changed:
            return False, value
        return True, self.new if hit else value


def is_linearizable(steps: list[Step], initial: int | None) -> bool | None:
    """None if there was no time to tell."""
    steps = sorted(steps, key=lambda step: step.begun_ns)
    certain = sum(1 << n for n, step in enumerate(steps) if step.ended_ns != NEVER)
    tried: set[tuple[int, int | None]] = set()
    stack: list[tuple[int, int | None]] = [(0, initial)]
    while stack:
        done, value = stack.pop()
        if done & certain == certain:
            return True
        if (done, value) in tried:
            continue
        tried.add((done, value))
        if len(tried) > TRIED_MAX:
            return None
        left = [n for n in range(len(steps)) if not done >> n & 1]
        first_end = min(steps[n].ended_ns for n in left)
        for n in reversed(left):
            step = steps[n]
            if step.begun_ns <= first_end:
                fits, after = step.apply(value)
                if fits and not (step.ended_ns == NEVER and after == value):
                    stack.append((done | 1 << n, after))
    return False


class Registers(Workload):
    """Keys come into use one after another, so that no search is long."""

    name = "registers"

    def __init__(self, rng: random.Random, shards: int, level: str = "") -> None:
        super().__init__(rng, shards, level)
        self.steps: dict[int, list[Step]] = {}
        self.undecided = 0
        self._value = 0
        self._count = 0

    async def set_up(self, client: Client) -> None:
        clause = split_at(self.shards, KEYS)
        await client.run(f"CREATE TABLE registers (id int PRIMARY KEY, v int) {clause}")

    async def act(self, client: Client) -> Operation:
        rng = client.rng
        self._count += 1
        oldest = self._count // STEPS_PER_KEY * 1
        slot = rng.randrange(KEYS_AT_ONCE)
        # Neighbours in use are far apart, on different ranges.
        key = ((oldest // KEYS_AT_ONCE) * KEYS_AT_ONCE + slot) * 53 % KEYS
        known = self.steps.setdefault(key, [])
        chance = rng.random()
        self._value += 1
        new = self._value
        step: list[Step] = []

        async def work(operation: Operation) -> None:
            begun = operation.begun_ns
            if chance < 0.4:
                operation.what.append(f"read {key}")
                rows = (await client.run("SELECT v FROM registers WHERE id = $1", key)).rows
                value = int(rows[0][0] or 0) if rows else None
                operation.what.append(value)
                step[:] = [Step("read", begun, client.world.now_ns, new=value)]
            elif chance < 0.7:
                operation.what.append(f"write {new} to {key}")
                step[:] = [Step("write", begun, NEVER, new=new)]
                sql = (
                    "INSERT INTO registers VALUES ($1, $2)"
                    " ON CONFLICT (id) DO UPDATE SET v = excluded.v"
                )
                await client.run(sql, key, new)
                step[:] = [Step("write", begun, client.world.now_ns, new=new)]
            else:
                old = max(new - rng.randrange(1, 30), 0)
                for other in reversed(known):
                    if other.new is not None and rng.random() < 0.7:
                        old = other.new
                        break
                operation.what.append(f"set {key} from {old} to {new}")
                step[:] = [Step("cas", begun, NEVER, old, new)]
                sql = "UPDATE registers SET v = $2 WHERE id = $1 AND v = $3"
                hit = (await client.run(sql, key, new, old)).count == 1
                step[:] = [Step("cas", begun, client.world.now_ns, old, new, hit)]

        operation = await client.alone(work)
        if step and operation.outcome != FAILED:
            known.append(step[0])
        return operation

    async def finish(self, client: Client) -> None:
        while True:
            begun = client.world.now_ns
            seen: dict[int, int] = {}

            async def work(_: Operation, seen: dict[int, int] = seen) -> None:
                rows = (await client.run("SELECT id, v FROM registers")).rows
                seen.update((int(ident or 0), int(value or 0)) for ident, value in rows)

            if (await client.alone(work)).outcome == OK:
                for key, steps in self.steps.items():
                    steps.append(Step("read", begun, client.world.now_ns, new=seen.get(key)))
                return

    def check(self) -> list[str]:
        for key, steps in self.steps.items():
            verdict = is_linearizable(steps, None)
            if verdict is None:
                self.undecided += 1
            elif not verdict:
                shown = "\n  ".join(map(str, _shortest_bad(steps)))
                self.violations.append(f"register {key} is not linearizable:\n  {shown}")
        return self.violations


def _shortest_bad(steps: list[Step]) -> list[Step]:
    """A shorter history that is not linearizable either: up to the first answer that cannot be."""
    steps = sorted(steps, key=lambda step: step.ended_ns)
    for count in range(1, len(steps) + 1):
        end = steps[count - 1].ended_ns
        part = steps[:count]
        part += [
            Step(step.kind, step.begun_ns, NEVER, step.old, step.new)
            for step in steps[count:]
            if step.kind != "read" and step.begun_ns < end
        ]
        if is_linearizable(part, None) is False:
            return sorted(part, key=lambda step: step.begun_ns)[-12:]
    return steps
