"""Which of torch's operators run during a call, and which memory each of them reads and writes.

Records events and sums nothing up: a test decides what they mean. A worker has a copy of this file.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Piece(NamedTuple):
    """A tensor as memory.

    Attributes:
        memory, memory_bytes: start and size of its memory.
        address, num_bytes: start and size of this piece of it.
        dtype: such as `torch.float32`.
        floating: whether the dtype is a floating-point one.
    """

    memory: int
    memory_bytes: int
    address: int
    num_bytes: int
    shape: tuple[int, ...]
    dtype: str
    floating: bool


class Event(NamedTuple):
    """One operator: the tensors that it only reads, those that it changes, and its results."""

    name: str
    overload: str
    given: list[Piece]
    changed: list[Piece]
    made: list[Piece]


class Log(TorchDispatchMode):
    """The operators that `watch` has seen so far. Keeps every tensor alive, so that no address stands for two of them.

    It sees the operators of one thread, so no other thread may start while it watches.

    Attributes:
        events: one for each operator, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._held: list[Tensor] = []
        self._threads = 0
        sys.addaudithook(self._note_thread)  # it can never be removed again

    def watch(self, call: Callable, *arguments: Any) -> Any:
        """The result of the call. Raises `RuntimeError` if the call has started a thread."""
        before = self._threads
        with self:
            result = call(*arguments)
        if self._threads != before:
            raise RuntimeError("a thread was begun while the operators of this one were noted: compute in the thread you are in")
        return result

    def _note_thread(self, event: str, arguments: Any) -> None:
        self._threads += event == "_thread.start_new_thread"

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Says that nothing is compiled here: by default torch would import its compiler, a second in every check."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode composite operators arrive, too
            out = func.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        out = func(*args, **kwargs)
        changed = changed_by(func, args, kwargs)
        given = [t for t in tensors_in((args, kwargs)) if not any(t is other for other in changed)]
        schema = func._schema
        self.events.append(Event(schema.name, schema.overload_name, *map(self._pieces, (given, changed, tensors_in(out)))))
        return out

    def _pieces(self, tensors: list[Tensor]) -> list[Piece]:
        self._held += tensors
        memories = [(t, t.untyped_storage()) for t in tensors]
        return [Piece(memory.data_ptr(), memory.nbytes(), t.data_ptr(), t.nbytes, tuple(t.shape), str(t.dtype),
                      t.dtype.is_floating_point) for t, memory in memories]


def changed_by(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The arguments that an operator writes to: an in-place operator's, or those of out=."""
    arguments = func._schema.arguments
    given = [*zip(arguments, args, strict=False), *((one, kwargs.get(one.name)) for one in arguments)]
    return tensors_in([value for one, value in given if one.alias_info is not None and one.alias_info.is_write])


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors, however deep in lists, tuples and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
