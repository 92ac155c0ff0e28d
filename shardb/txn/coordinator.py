"""Two-phase commit as the transaction's coordinator decides it; pure, effects are returned.

When every participant has answered yes, the transaction is committed at the maximum of the answers
and the client is told; the participants learn it afterwards. One abort record means aborted. An
answer that was lost is asked for again with `Ask`, which makes a participant that has not prepared
record abort; if no answer can be had, the outcome is `unknown` (08007), never guessed.

    phase       event               next        effects
    preparing   yes (not the last)  preparing
    preparing   yes (the last)      committed   Report(commit_ts), Tell all commit_ts
    preparing   refused             aborted     Report(0), Tell the others 0
    preparing   lost                preparing   Ask that participant
    preparing   gave up             unknown     Report(None)
    decided     anything            the same
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PREPARING: Final = "preparing"
COMMITTED: Final = "committed"
ABORTED: Final = "aborted"
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask a participant for the outcome, recording abort if it has not prepared."""

    participant: int


@dataclass(frozen=True, slots=True)
class Tell:
    """Send the outcome to a participant: the commit timestamp, 0 for abort."""

    participant: int
    commit_ts: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the client: the commit timestamp, 0 for aborted, None if it is not known."""

    commit_ts: int | None


Effect = Ask | Tell | Report


class TwoPhaseCommit:
    """One commit over `count` participants, named 0 .. count - 1; all have been sent PREPARE."""

    def __init__(self, count: int) -> None:
        assert count > 0
        self.phase = PREPARING
        self._answers: list[int | None] = [None] * count

    def prepared(self, participant: int, min_commit_ts: int) -> list[Effect]:
        """A participant has prepared durably."""
        if self.phase != PREPARING:
            return self._late(participant)
        self._answers[participant] = min_commit_ts
        if any(answer is None for answer in self._answers):
            return []
        commit_ts = max(answer for answer in self._answers if answer is not None)
        return self._commit(commit_ts)

    def committed(self, participant: int, commit_ts: int) -> list[Effect]:
        """A participant already knows the outcome: others have finished the transaction."""
        if self.phase != PREPARING:
            return []
        return self._commit(commit_ts)

    def refused(self, participant: int) -> list[Effect]:
        """A participant has a durable abort record (or, before it, never had any state)."""
        assert self.phase != COMMITTED, "a participant aborted a committed transaction"
        if self.phase != PREPARING:
            return []
        self.phase = ABORTED
        others = [i for i in range(len(self._answers)) if i != participant]
        return [Report(0), *(Tell(i, 0) for i in others)]

    def lost(self, participant: int) -> list[Effect]:
        """The answer to PREPARE, or to Ask, did not come."""
        if self.phase != PREPARING:
            return []
        return [Ask(participant)]

    def gave_up(self) -> list[Effect]:
        """The client cannot wait any longer."""
        if self.phase != PREPARING:
            return []
        self.phase = UNKNOWN
        return [Report(None)]

    def _commit(self, commit_ts: int) -> list[Effect]:
        self.phase = COMMITTED
        return [Report(commit_ts), *(Tell(i, commit_ts) for i in range(len(self._answers)))]

    def _late(self, participant: int) -> list[Effect]:
        return [Tell(participant, 0)] if self.phase == ABORTED else []
