"""The message of an unwritten TODO, and how a lab's program prints it without a traceback.

Knows nothing of pytest, of the engine or of where labs lie; a starter imports only this module.
"""

import asyncio
import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any

_NUMBERED = re.compile(r"TODO (\d+): *(.*)", re.DOTALL)


class TodoError(NotImplementedError):
    """Raised where a learner's code is still missing: `raise TodoError("TODO 3: the goal", lab="02")`.

    `number`, `goal` and `lab` say which TODO it is; `str()` adds the commands that check it and
    that give a hint.
    """

    def __init__(self, message: str, lab: str = ""):
        super().__init__(message)
        match = _NUMBERED.match(message)
        self.number: int | None = int(match[1]) if match else None
        self.goal = match[2] if match else message
        self.lab = lab

    def __str__(self) -> str:
        message = str(self.args[0])
        if self.number is None:
            return message
        return (
            f"{message}\n"
            f"  check it:   pytest test_lab.py -k todo_{self.number}\n"
            f"  get a hint: python -m labs hint {self.lab or 'LAB'} {self.number}"
        )


def run_lab(main: Callable) -> None:
    """Run a lab's `main`, plain or `async`, as a program.

    An unwritten TODO ends it with a short note and exit status 1 instead of a traceback. Any other
    error keeps its traceback: it is the learner's to read.
    """
    try:
        result = main()
        if inspect.isawaitable(result):
            asyncio.run(_wait_for(result))
    except TodoError as todo:
        sys.stdout.flush()
        print(f"\nThis is as far as the program gets for now. Next:\n\n{todo}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


async def _wait_for(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
