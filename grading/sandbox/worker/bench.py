"""What the judge can do in the worker: load the submission, hold tensors, look at the machine's state."""

import builtins
import linecache
import mmap
import sys
import time
from types import ModuleType
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from torch.utils import _python_dispatch as torch_dispatch

from labs.harness.suite import beside, operators

from . import absent, peer, wire

MEASURED_WITH: dict[str, tuple[Any, ...]] = {
    "memory": (wire, peer, peer.Peer, safetensors_torch, torch.Tensor),
    "operators": (operators, operators.Log, torch_dispatch, torch_dispatch.TorchDispatchMode),
    "maps": (mmap, torch), "numbers": (torch,), "turns": (time, beside, beside.Neighbour), "types": (builtins,)}
"""Kinds of measurements in the worker, and the modules and classes whose functions each of them uses."""


class Bench:
    """The object that a judge begins with.

    Args:
        home: the path under which the submission is written and run.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._before = {what: [(owner, _functions(owner)) for owner in owners] for what, owners in MEASURED_WITH.items()}

    def write(self, text: str) -> None:
        """Lay a submission's text where it will run. An error here is the machine's: nothing of the submission runs yet."""
        with open(self._home, "w", encoding="utf-8") as file:
            file.write(text)

    def load(self, text: str, ours: dict[str, str] | None = None) -> ModuleType:
        """Run the text of a submission as a module, and return it.

        Args:
            ours: dotted name → the text of our function for that name, whatever the submission put there.
        """
        linecache.checkcache(self._home)
        absent.provide(text)
        module = ModuleType("starter")
        module.__file__ = self._home
        sys.modules["starter"] = module
        exec(compile(text, self._home, "exec"), module.__dict__)
        for name, function in (ours or {}).items():
            self._put(module, name, function)
        return module

    def _put(self, module: ModuleType, name: str, text: str) -> None:
        """Puts a function of ours into a module or a class of it; a nested function is in its outer function's text already."""
        *classes, last = name.split(".")
        owner: Any = module
        for part in classes:
            owner = vars(owner).get(part)
            if not isinstance(owner, type):
                return
        made: dict[str, Any] = {}
        exec(compile(text, self._home, "exec"), module.__dict__, made)
        setattr(owner, last, made[last])

    def package(self, name: str) -> ModuleType:
        """A module of the runtime."""
        import importlib

        return importlib.import_module(name)

    def hold(self, value: Any) -> Any:
        """Keep a value here; `kept(bench.hold, tensor)` is a tensor that calls can change in place."""
        return value

    def look(self, value: Any) -> Any:
        """The present value of an object that is held here."""
        return value

    def log(self) -> operators.Log:
        """Notes torch's operators."""
        return operators.Log()

    def replaced(self, what: str) -> str:
        """The name of a function that a measurement uses and that was replaced; empty if there is none.

        A new function in a class counts as well, because it would hide an inherited one.
        """
        for owner, before in self._before[what]:
            now = _functions(owner)
            changed = [name for name, value in before.items() if now.get(name) is not value]
            if isinstance(owner, type):
                changed += now.keys() - before.keys()
            if changed:
                return f"{owner.__name__}.{changed[0]}"
        return ""


def _functions(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if callable(value)}
