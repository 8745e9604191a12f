"""Two processes that use each other's objects: calls, attributes and their answers, over one socket.

Both ends are alike. An object that is not plain stays where it is, and the other end gets a
`Remote`. While one end waits for an answer it serves the other's requests, so the judge can
hand out a model or a clock of its own and see every use of it.
"""

import asyncio
import builtins
import functools
import importlib
import inspect
import reprlib
import socket
import traceback
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

from .wire import Ended, Garbled, decode, encode, frame, read_all, receive, write_all

MOST_TEXT = 2_000
"""How many characters of an error's message, or of an object's repr, are sent."""


class Final(Exception):
    """Ends a check wherever it is raised; the other end never sees it, and so cannot catch it."""


class Raised(Exception):
    """An exception of the other end.

    Attributes:
        kinds: names of its class and of the class's bases, the nearest first.
        text: its message.
        line: the line of the submission in which it arose, if any.
    """

    def __init__(self, kinds: list[str], text: str, line: int | None = None) -> None:
        super().__init__(f"{kinds[0]}: {text}" if text else kinds[0])
        self.kinds, self.text, self.line = kinds, text, line


class Remote:
    """An object that lives at the other end. Attributes and calls go there; so does `len`."""

    def __init__(self, peer: "Peer", number: int, kind: str, looks: str) -> None:
        self.__dict__.update(_peer=peer, _number=number, _kind=kind, _looks=looks)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.ask("get", self._number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("set", self._number, name, [value])

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.ask("call", self._number, "", list(arguments), named)

    def __len__(self) -> int:
        return self._peer.ask("len", self._number)

    def __bool__(self) -> bool:
        if self._peer._trusting:  # what the judge hands out is a function or an object, which are true wherever they live
            return True
        raise TypeError(f"an object of class {self._kind} is neither true nor false")

    def __repr__(self) -> str:
        return self._looks


class Exported:
    """An object of this end of which the other may use only the named methods and attributes."""

    def __init__(self, inner: Any, *names: str) -> None:
        self.inner, self.names = inner, names


class Peer:
    """One end.

    Attributes:
        tools: functions of the other end's root, taken before anything there could have changed them.

    Args:
        connection: the socket.
        root: the object that the other end begins with, number 0.
        trusting: whether the other end may use any attribute, and have objects of the package made.
        read: waits for bytes, `read(connection, count)`.
        write: sends bytes, `write(connection, data)`.
    """

    def __init__(
        self, connection: socket.socket, root: Any = None, trusting: bool = False,
        read: Callable[[socket.socket, int], bytes] = read_all, home: str = "",
        write: Callable[[socket.socket, bytes], None] = write_all,
    ) -> None:
        self.root = Remote(self, 0, "root", "root")
        self._connection, self._trusting, self._read, self._write, self._home = connection, trusting, read, write, home
        self._objects: list[Any] = [root]
        self._loop: asyncio.AbstractEventLoop | None = None
        self.tools: dict[str, Remote] = {}

    def ask(self, what: str, number: int, name: str = "", arguments: list | None = None, named: dict | None = None) -> Any:
        """Have the other end do something; serve it until its answer comes. Raises `Raised` with its exception."""
        self._send({"do": what, "on": number, "name": name}, {"arguments": arguments or [], "named": named or {}})
        while True:
            message, values = self._receive()
            if "do" in message:
                self._serve(message, values)
            elif "raise" in message:
                raise _raised(message["raise"])
            else:
                return values

    def serve(self) -> None:
        """Serve the other end's requests until it is gone."""
        try:
            while True:
                message, values = self._receive()
                self._serve(message, values)
        except Ended:
            return

    def _serve(self, message: dict, values: Any) -> None:
        try:
            result = self._do(message, values)
        except (Ended, Garbled, Final):
            raise
        except AssertionError as error:  # of a test, in what it handed out: the submission cannot catch it
            if self._trusting or isinstance(error, Raised):
                self._send({"raise": self._describe(error)}, None)
                return
            raise
        except BaseException as error:  # of a submission also SystemExit: it ends nothing
            if not (self._trusting or isinstance(error, Exception)):
                raise
            self._send({"raise": self._describe(error)}, None)
            return
        try:
            self._send({"answer": True}, result)
        except Ended:
            raise
        except Exception as error:  # it is too long, too deep, or only says that it is a tensor
            self._send({"raise": {"kinds": ["Garbled"], "text": f"it cannot be sent: {_message_of(error)}", "line": None}}, None)

    def _do(self, message: dict, values: Any) -> Any:
        what, number, name = message.get("do"), message.get("on"), message.get("name")
        if type(number) is not int or not 0 <= number < len(self._objects) or not isinstance(name, str):
            raise Garbled("an object that was never handed out")
        target = self._objects[number]
        if isinstance(target, Exported):
            if what == "get" and name in target.names:
                value = getattr(target.inner, name)
                return Exported(value) if callable(value) else value
            target = target.inner if what == "call" else self._refuse(what, name)
        elif not self._trusting:
            self._refuse(what, name)
        if what == "get":
            return getattr(target, name)
        if what == "set":
            return setattr(target, name, values["arguments"][0])
        if what == "len":
            return len(target)
        if what == "keep":
            return _Kept(self._settled(target(*values["arguments"], **values["named"])))
        if what == "call":
            return self._settled(target(*values["arguments"], **values["named"]))
        raise Garbled(f"asked to {what!r}")

    def _refuse(self, what: object, name: str) -> Any:
        raise Garbled(f"asked to {what} {name!r}, which was not handed out")

    def _settled(self, value: Any) -> Any:
        """The result of an awaitable, and the items of an iterator."""
        if not self._trusting:
            return value
        if inspect.isawaitable(value):
            return self._run(value)
        if inspect.isasyncgen(value):
            return self._run(_items(value))
        if inspect.isgenerator(value):
            return list(value)
        return value

    def _run(self, awaitable: Any) -> Any:
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(_wait_for(awaitable))

    # values

    def _send(self, message: dict, values: Any) -> None:
        tensors: dict = {}
        message["values"] = encode(values, tensors, self._export)
        self._write(self._connection, frame(message, tensors))

    def _receive(self) -> tuple[dict, Any]:
        message, tensors = receive(lambda count: self._read(self._connection, count))
        try:
            return message, decode(message.get("values"), tensors, self._import)
        except RecursionError:
            raise Garbled("a value nested too deeply") from None

    def _export(self, value: Any) -> dict:
        if isinstance(value, _Kept):
            value = value.value
        if isinstance(value, Remote):
            return {"yours": value._number}
        if not self._trusting and is_dataclass(value) and not isinstance(value, type):
            return self._recipe(value)
        self._objects.append(value)
        inner = value.inner if isinstance(value, Exported) else value
        return {"object": len(self._objects) - 1, "kind": type(inner).__name__, "looks": _looks(inner) if self._trusting else ""}

    def _recipe(self, value: Any) -> dict:
        """The instructions with which the other end makes a dataclass of the package."""
        tensors: dict = {}
        attributes = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        node = encode(attributes, tensors, self._export)
        if tensors:
            raise Garbled(f"{type(value).__name__} has tensors in it")
        return {"make": f"{type(value).__module__}:{type(value).__qualname__}", "of": node}

    def _import(self, node: dict) -> Any:
        if "yours" in node:
            number = node["yours"]
            if type(number) is not int or not 0 <= number < len(self._objects):
                raise Garbled("an object that was never handed out")
            target = self._objects[number]
            return target.inner if isinstance(target, Exported) else target
        if "make" in node and self._trusting:
            module, _, name = node["make"].partition(":")
            attributes = decode(node["of"], {}, self._import)
            return getattr(importlib.import_module(module), name)(**attributes)
        if set(node) == {"object", "kind", "looks"} and [type(node[key]) for key in ("object", "kind", "looks")] == [
                int, str, str]:
            return Remote(self, node["object"], node["kind"][:80], node["looks"][:MOST_TEXT])
        raise Garbled("a value of no kind")

    def _describe(self, error: BaseException) -> dict:
        kinds = [kind.__name__ for kind in type(error).__mro__ if kind is not object]
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if self._home and frame.filename == self._home]
        line = frames[-1].lineno if frames else None
        if isinstance(error, Raised):  # it came from the other end, and goes back there as what it was
            return {"kinds": error.kinds, "text": error.text, "line": error.line or line}
        return {"kinds": kinds, "text": _message_of(error), "line": line}


class _Kept:
    """A result that stays where it is, though it could be sent."""

    def __init__(self, value: Any) -> None:
        self.value = value


def kept(call: Remote, *arguments: Any, **named: Any) -> Remote:
    """The result of a call as an object of the other end, even if it is a tensor or a number."""
    return call._peer.ask("keep", call._number, "", list(arguments), named)


async def _wait_for(awaitable: Any) -> Any:
    return await awaitable


async def _items(generator: Any) -> list:
    return [item async for item in generator]


def _message_of(error: BaseException) -> str:
    try:
        return str(error)[:MOST_TEXT]
    except Exception as worse:
        return f"(its message cannot be had: {type(worse).__name__})"


def _looks(value: Any) -> str:
    try:
        return (reprlib.repr(value) if type(value) is list else repr(value))[:MOST_TEXT]  # thousands of rows take seconds
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def _raised(message: Any) -> Exception:
    """The exception that a message describes, as a builtin class if the other end must not choose the class."""
    error = message if isinstance(message, dict) else {}
    kinds, text, line = error.get("kinds"), error.get("text"), error.get("line")
    if not isinstance(text, str) or not isinstance(kinds, list) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        raise Garbled("an error of no kind")
    kinds = [kind[:80] for kind in kinds[:20]]
    bases = [getattr(builtins, kind, None) for kind in kinds]
    builtin: type = next((base for base in bases if isinstance(base, type) and issubclass(base, Exception)), Exception)
    arguments = kinds, text[:MOST_TEXT], line if type(line) is int else None
    try:
        return _raised_as(builtin)(*arguments)
    except TypeError:  # the builtin takes other arguments
        return Raised(*arguments)


_ENDS_A_LOOP = (StopIteration, StopAsyncIteration)
"""A judge's own `map` or `for` would take such an exception for the end of what it goes through."""


@functools.cache
def _raised_as(base: type) -> type[Raised]:
    """A `Raised` that an `except` of the builtin catches, too."""
    if base is Exception or issubclass(base, _ENDS_A_LOOP):
        return Raised
    try:
        return type("Raised", (Raised, base), {})
    except TypeError:  # its memory layout does not mix
        return Raised
