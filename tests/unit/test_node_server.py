"""The shard process: what its shell does with bugs."""

from __future__ import annotations

import asyncio

import uvloop

from shardb.errors import SqlError
from shardb.node.server import end_on_bugs


def test_an_exception_in_a_callback_ends_the_process() -> None:
    ended: list[str] = []

    async def check() -> None:
        loop = asyncio.get_running_loop()
        end_on_bugs(loop, lambda error: ended.append(error.message))
        loop.call_soon(lambda: {}["nothing"])
        await asyncio.sleep(0.01)

        async def fail() -> None:
            raise SqlError("08006", "a task's own error")

        task = loop.create_task(fail())
        await asyncio.sleep(0.01)
        del task  # nobody asks for its result: reported, and no reason to end

    for run in (asyncio.run, uvloop.run):
        ended.clear()
        run(check())
        assert ended == ["KeyError: 'nothing'"]
