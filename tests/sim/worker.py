"""A process that carries out runs for another."""

from __future__ import annotations

import logging

from tests.sim.cluster import set_limits
from tests.sim.mutations import mutated
from tests.sim.run import Config, Report, simulate


def begin_worker() -> None:
    """What each process needs before its first run."""
    set_limits(setattr)
    logging.basicConfig(level=logging.CRITICAL)


def carry_out(job: tuple[Config, str]) -> tuple[Report, str]:
    """A run with a mutation, in a worker."""
    config, mutation = job
    with mutated(mutation):
        return simulate(config), mutation
