"""A background that does nothing before a test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shardb.sim.loop import Crash


@dataclass
class SteppedBackground:
    """Worker threads whose jobs run when a test says so, in order, in its own thread."""

    jobs: list[Callable[[], None]] = field(default_factory=list)
    closed: bool = False

    def run(
        self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        def work() -> None:
            try:
                result = job()
            except Crash:
                raise
            except BaseException as error:
                done(None, error)
            else:
                done(result, None)

        assert not self.closed
        self.jobs.append(work)

    def step(self) -> bool:
        """Runs the next job and tells of it; False if there is none."""
        if self.jobs:
            self.jobs.pop(0)()
            return True
        return False

    def wait(self) -> None:
        while self.step():
            pass

    def close(self) -> None:
        self.jobs.clear()
        self.closed = True
