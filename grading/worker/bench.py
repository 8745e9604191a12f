"""What the judge may have done where the submission is: load it, hold tensors, look at the machine's state."""

import linecache
import sys
from types import ModuleType
from typing import Any


class Bench:
    """The object that a judge begins with.

    Args:
        home: the path under which the submission is written and run.
    """

    def __init__(self, home: str) -> None:
        self._home = home

    def write(self, text: str) -> None:
        """Lay a submission's text where it will run. An error here is the machine's: nothing of the submission runs yet."""
        with open(self._home, "w", encoding="utf-8") as file:
            file.write(text)

    def load(self, text: str) -> ModuleType:
        """Run the text of a submission as a module, and return it."""
        linecache.checkcache(self._home)
        module = ModuleType("starter")
        module.__file__ = self._home
        sys.modules["starter"] = module
        exec(compile(text, self._home, "exec"), module.__dict__)
        return module

    def package(self, name: str) -> ModuleType:
        """A module of the runtime."""
        import importlib

        return importlib.import_module(name)

    def hold(self, value: Any) -> Any:
        """Keep a value here; `kept(bench.hold, tensor)` is a tensor that calls can change in place."""
        return value

    def look(self, value: Any) -> Any:
        """A value that is held here, as it is now."""
        return value
