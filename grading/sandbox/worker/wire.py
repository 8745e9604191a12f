"""Values as bytes and back: JSON for what is plain, safetensors for tensors. Nothing is ever unpickled.

A frame is two lengths, the JSON and the tensors. Subclasses of plain types arrive as the plain
type, so no `__eq__` crosses. For a value that is neither plain nor a tensor, the sending end puts a
number in its place.
"""

import functools
import json
import socket
import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load, save

LENGTHS = struct.Struct(">II")
MOST_BYTES = 64 << 20
"""Of one frame."""
MOST_TEXT_BYTES = 4 << 20
"""The most bytes of a frame's JSON: as Python objects it takes sixty times as much."""
MOST_HEADER_BYTES = 1 << 20
"""The most bytes of the part of a frame that lists its tensors."""
MOST_NUMBERS = 1 << 24
"""The most numbers in a range, which is short on the wire and may be long in memory."""
MOST_LARGE = 5_000
"""How many numbers of more than 60 bits a list, and how many keys a dictionary, may have without a check for collisions."""

Node = Any
"""A value of JSON."""


class Garbled(Exception):
    """The received bytes are no frame, or too many."""


class Ended(Exception):
    """The other end is gone."""


def encode(value: Any, tensors: dict[str, torch.Tensor], foreign: Callable[[Any], Node]) -> Node:
    """`value` as JSON; its tensors go into `tensors`, and `foreign` turns values that are not plain into JSON."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [encode(item, tensors, foreign) for item in value]
    if isinstance(value, torch.Tensor):
        return {"tensor": _keep(value, tensors)}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.Size):
        return {"tuple": [int(size) for size in value]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, str):  # a subclass, here and below: its own conversions are not called
        return str.__str__(value)
    if isinstance(value, int):
        return int.__pos__(value)
    if isinstance(value, float):
        return float.__pos__(value)
    return _encode_container(value, tensors, foreign)


def _encode_container(value: Any, tensors: dict[str, torch.Tensor], foreign: Callable[[Any], Node]) -> Node:
    if isinstance(value, tuple):
        items = [encode(item, tensors, foreign) for item in tuple.__iter__(value)]
        names = getattr(type(value), "_fields", None)
        return {"named": [list(names), items]} if names else {"tuple": items}
    if isinstance(value, list):
        return [encode(item, tensors, foreign) for item in list.__iter__(value)]
    if isinstance(value, dict):
        pairs = [(key, dict.__getitem__(value, key)) for key in dict.__iter__(value)]
        return {"dict": [[encode(key, tensors, foreign), encode(item, tensors, foreign)] for key, item in pairs]}
    if isinstance(value, set | frozenset):
        members = set.__iter__(value) if isinstance(value, set) else frozenset.__iter__(value)
        return {"set": [encode(item, tensors, foreign) for item in members]}
    return foreign(value)


def _keep(tensor: torch.Tensor, tensors: dict[str, torch.Tensor]) -> str:
    name = str(len(tensors))
    tensors[name] = tensor.detach().to("cpu").contiguous().clone()
    return name


class Record(tuple):
    """The received form of a named tuple: its values, and their names as attributes."""

    def __new__(cls, names: list[str], values: list) -> "Record":
        record = super().__new__(cls, values)
        record.__dict__.update(zip(names, values, strict=True))
        return record


def decode(node: Node, tensors: dict[str, torch.Tensor], foreign: Callable[[dict], Any]) -> Any:
    """The value of a node. Raises `Garbled` for a node that `encode` never makes."""
    if isinstance(node, list):
        return _spread([decode(item, tensors, foreign) for item in node])
    if not isinstance(node, dict):
        return node
    try:
        return _decode_tagged(node, tensors, foreign)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise Garbled(f"a value that cannot be read: {type(error).__name__}") from None


def _decode_tagged(node: dict, tensors: dict[str, torch.Tensor], foreign: Callable[[dict], Any]) -> Any:
    if len(node) != 1:
        return foreign(node)
    (tag, inner), = node.items()
    if tag == "tensor":
        return tensors[inner]
    if tag == "tuple":
        return tuple(decode(item, tensors, foreign) for item in inner)
    if tag == "named":
        return Record(inner[0], [decode(item, tensors, foreign) for item in inner[1]])
    if tag == "dict":
        pairs = [(decode(key, tensors, foreign), decode(item, tensors, foreign)) for key, item in inner]
        _refuse_colliding([key for key, _ in pairs])
        return dict(pairs)
    if tag == "set":
        return set(_refuse_colliding([decode(item, tensors, foreign) for item in inner]))
    if tag == "range":
        return _short(range(*inner))
    if tag == "bytes":
        return bytes.fromhex(inner)
    if tag == "dtype":
        return _dtypes()[inner]
    return foreign(node)


@functools.cache
def _dtypes() -> dict[str, torch.dtype]:
    return {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


def _spread(items: list) -> list:
    """The list, unless it has so many large numbers that they could be made to collide in a set."""
    if len(items) > MOST_LARGE and sum(type(item) is int and abs(item) >= sys.hash_info.modulus for item in items) > MOST_LARGE:
        raise Garbled(f"more than {MOST_LARGE} numbers of more than 60 bits")
    return items


def _refuse_colliding(keys: list) -> list:
    """The keys, unless they are made to collide: such a set or dictionary would keep the judge busy for minutes."""
    if len(keys) > MOST_LARGE and max(Counter(map(hash, keys)).values()) > len(keys) // 10:
        raise Garbled("keys that were made to collide")
    return keys


def _short(numbers: range) -> range:
    if len(numbers[: MOST_NUMBERS + 1]) > MOST_NUMBERS:
        raise Garbled(f"a range of more than {MOST_NUMBERS} numbers")
    return numbers


def frame(message: dict, tensors: dict[str, torch.Tensor]) -> bytes:
    """A message and its tensors as bytes. Raises `Garbled` if they are too many."""
    text = json.dumps(message).encode()
    blob = save(tensors) if tensors else b""
    _not_too_long(len(text), len(blob))
    return LENGTHS.pack(len(text), len(blob)) + text + blob


def _not_too_long(text: int, blob: int) -> None:
    for size, most, what in ((text, MOST_TEXT_BYTES, "of values"), (text + blob, MOST_BYTES, "at once")):
        if size > most:
            raise Garbled(f"{size >> 20} MiB {what}; the most is {most >> 20}")


def receive(read: Callable[[int], bytes]) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read one frame; `read(n)` gives exactly n bytes or raises."""
    length, blob_length = LENGTHS.unpack(read(LENGTHS.size))
    _not_too_long(length, blob_length)
    text, blob = read(length), read(blob_length)
    if blob and int.from_bytes(blob[:8], "little") > MOST_HEADER_BYTES:
        raise Garbled("too many tensors")
    try:
        message = json.loads(text)
        tensors = load(blob) if blob else {}
    except Exception as error:  # a parser may raise anything for bytes from a submission
        raise Garbled(f"bytes that are no message: {type(error).__name__}") from None
    if not isinstance(message, dict):
        raise Garbled("a message that is no object")
    return message, tensors


def write_all(connection: socket.socket, data: bytes) -> None:
    """Sends all of it. Raises `Ended` if the other end is gone."""
    try:
        connection.sendall(data)
    except OSError:
        raise Ended from None


def read_all(connection: socket.socket, count: int) -> bytes:
    """Exactly `count` bytes, waiting for them. Raises `Ended`."""
    data = bytearray()
    while len(data) < count:
        try:
            piece = connection.recv(min(count - len(data), 1 << 20))
        except OSError:
            raise Ended from None
        if not piece:
            raise Ended
        data += piece
    return bytes(data)
