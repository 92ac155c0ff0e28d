"""How a prepared participant finds out what became of its transaction, without the coordinator.

It asks every participant on the list. All prepared (or one that knows): committed at the maximum;
one durable abort: aborted. Asked with `record`, a participant that has not prepared records abort,
so that the question always ends once all are reachable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shardb.rpc.messages import Outcome


@dataclass(slots=True)
class Recovery:
    """The answers so far, by position in the participants' list; the asker's own is given."""

    count: int
    answers: dict[int, int] = field(default_factory=dict)

    def answer(self, position: int, outcome: Outcome) -> int | None:
        """Takes an answer; the outcome (commit_ts, 0 for abort) once it is certain, else None."""
        if outcome.state == "aborted":
            return 0
        if outcome.state == "committed":
            return outcome.ts
        if outcome.state == "prepared":
            self.answers[position] = outcome.ts
            if len(self.answers) == self.count:
                return max(self.answers.values())
        return None
