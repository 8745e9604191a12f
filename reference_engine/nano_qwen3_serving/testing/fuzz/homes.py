"""The event loops on which callers live: the fuzzer's own, and sometimes a second one in a thread.

Whatever a caller does happens on its own loop; the fuzzer asks for one thing at a time and waits for
it, so that two loops run the same way every time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

TURNS = 8  #: turns of an event loop in which every reader has come to rest


class Here:
    """The event loop that runs now."""

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work` on this loop."""
        return await work

    async def close(self) -> set[Any]:
        """Ends it; returns the tasks that are left over."""
        return asyncio.all_tasks() - {asyncio.current_task()}


class Thread:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="second-loop")
        self._thread.start()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Does `work` on this loop, and waits for it on the caller's."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def close(self) -> set[Any]:
        """Ends it; returns the tasks that are left over."""
        await self.run(self._loop.shutdown_asyncgens())
        left = {task for task in asyncio.all_tasks(self._loop) if not task.done()}
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        return left


async def turns() -> None:
    """Lets every task on this loop go on until all of them wait."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
