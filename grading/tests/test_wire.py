"""The wire: what is sent arrives as it was, and whatever else arrives is an error of two kinds and not much memory."""

import json
import math
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from grading.sandbox.worker import wire
from grading.sandbox.worker.wire import Ended, Garbled, decode, encode, frame, receive

pytestmark = pytest.mark.slow

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
Pair = namedtuple("Pair", "first second")

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=20))
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(),
                 st.tuples(st.integers(), st.text()))
values = st.recursive(
    st.one_of(plain, st.builds(range, st.integers(-9, 9), st.integers(-99, 99), st.integers(1, 5)),
              st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.lists(inner, max_size=4).map(tuple), st.dictionaries(keys, inner, max_size=4),
        st.sets(keys, max_size=4), st.builds(Pair, inner, inner)),
    max_leaves=20,
)


def bytes_from(data: bytes) -> Callable[[int], bytes]:
    """Reads `data` as a socket would, and then finds the other end gone."""
    rest = bytearray(data)

    def read(count: int) -> bytes:
        if len(rest) < count:
            raise Ended
        piece = bytes(rest[:count])
        del rest[:count]
        return piece

    return read


def refuse(node: dict) -> Any:
    raise Garbled("an object")


def there_and_back(value: Any) -> Any:
    tensors: dict = {}
    message = {"values": encode(value, tensors, refuse)}
    arrived, tensors = receive(bytes_from(frame(message, tensors)))
    return decode(arrived["values"], tensors, refuse)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same classes, and with NaN where there was NaN. A named tuple may have become a record."""
    if isinstance(one, tuple) and hasattr(one, "_fields"):
        return all(same(getattr(one, name), getattr(other, name)) for name in one._fields) and same(tuple(one), tuple(other))
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (one == other and math.copysign(1, one) == math.copysign(1, other)) or (one != one and other != other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(map(same, one.values(), other.values()))
    return one == other


@QUICK
@given(values)
def test_what_is_sent_arrives_as_it_was(value: Any):
    assert same(value, there_and_back(value))


@QUICK
@given(st.lists(st.integers(0, 4), max_size=3),
       st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float64]), st.booleans())
def test_a_tensor_arrives_with_its_shape_dtype_and_bits(shape: list[int], dtype: torch.dtype, turned: bool):
    tensor = torch.randint(-9, 9, shape).to(dtype)
    tensor = tensor.T if turned and len(shape) == 2 else tensor
    arrived = there_and_back([tensor])[0]
    assert (arrived.shape, arrived.dtype) == (tensor.shape, tensor.dtype) and torch.equal(arrived, tensor)


def test_nan_and_infinity_arrive_in_tensors():
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    assert there_and_back(tensor).view(torch.int32).tolist() == tensor.view(torch.int32).tolist()


class Liar:
    """What subclasses of plain types say of themselves."""

    __hash__ = None

    def __eq__(self, other: object) -> bool:
        return True

    def __len__(self) -> int:
        return 77

    def __iter__(self):
        return iter("never asked")

    def __str__(self) -> str:
        return "never asked"

    __repr__ = __str__


@pytest.mark.parametrize("kind, content",
                         [(list, [1, 2]), (tuple, (1, 2)), (str, "ab"), (int, 5), (float, 2.5), (dict, {"a": 1}), (set, {1})])
def test_a_subclass_of_a_plain_type_arrives_as_the_plain_type(kind: type, content: Any):
    arrived = there_and_back(type("Lying", (Liar, kind), {})(content))
    assert type(arrived) is kind and arrived == content and (arrived == "something else") is False


@settings(QUICK, max_examples=300)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_garbled_or_the_end(data: bytes):
    only_expected_errors(data)


tags = st.sampled_from(["tensor", "tuple", "named", "dict", "set", "range", "bytes", "dtype", "object", "yours", "make", "of",
                        "kind", "looks"])
nodes = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
              st.sampled_from(["0", "1", "float32", "load", "compile", "os:system"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(tags, inner, max_size=3),
        st.builds(lambda tag, value: {tag: value}, tags, inner)),
    max_leaves=15)


@settings(QUICK, max_examples=300)
@given(nodes, st.booleans())
def test_arbitrary_messages_are_values_or_garbled(node: Any, with_tensors: bool):
    text = json.dumps({"values": node}).encode()
    blob = wire.save({"0": torch.zeros(2)}) if with_tensors else b""
    only_expected_errors(wire.LENGTHS.pack(len(text), len(blob)) + text + blob)


@QUICK
@given(st.data())
def test_damaged_tensors_are_garbled_or_tensors(data: st.DataObject):
    whole = bytearray(frame({"values": {"tensor": "0"}}, {"0": torch.arange(6.0).reshape(2, 3)}))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(st.integers(0, 255))
    only_expected_errors(bytes(whole))


def only_expected_errors(data: bytes) -> None:
    """Reads frames until nothing is left: each is a value, or one of the two errors."""
    read = bytes_from(data)
    try:
        while True:
            message, tensors = receive(read)
            decode(message.get("values"), tensors, refuse)
    except (Garbled, Ended):
        pass


def framed(text: bytes, blob: bytes = b"") -> bytes:
    return wire.LENGTHS.pack(len(text), len(blob)) + text + blob


def many_tensors() -> bytes:
    header = json.dumps({str(number): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                         for number in range(40_000)}).encode()
    return framed(b'{"values": {"tensor": "0"}}', len(header).to_bytes(8, "little") + header)


TOO_MUCH = {
    "gigabytes announced": wire.LENGTHS.pack(1 << 31, 1 << 31) + b"x" * 1000,
    "more text than is allowed": framed(b'{"values": "' + b"x" * (5 << 20) + b'"}'),
    "a nesting of 100,000 lists": framed(b'{"values": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a range of 10**18 numbers": framed(b'{"values": {"range": [0, 1000000000000000000, 1]}}'),
    "a number of a million digits": framed(b'{"values": ' + b"9" * 1_000_000 + b"}"),
    "numbers of one hash": framed(json.dumps({"values": [((1 << 61) - 1) * number for number in range(1, 50_000)]}).encode()),
    "keys of one hash": framed(
        json.dumps({"values": {"set": [((1 << 61) - 1) * number for number in range(1, 50_000)]}}).encode()),
    "tensors by the thousand": many_tensors(),
    "a header of gigabytes": framed(b'{"values": {"tensor": "0"}}', (1 << 40).to_bytes(8, "little") + b"{}"),
    "a tensor larger than its bytes": framed(
        b'{"values": {"tensor": "0"}}',
        (lambda header: len(header).to_bytes(8, "little") + header)(
            b'{"0":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}')),
}  # fmt: skip


@pytest.mark.parametrize("what", TOO_MUCH)
def test_too_much_is_garbled_and_takes_little_memory(what: str):
    tracemalloc.start()
    try:
        with pytest.raises((Garbled, Ended)):
            message, tensors = receive(bytes_from(TOO_MUCH[what]))
            decode(message["values"], tensors, refuse)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20, f"{what} took {peak >> 20} MiB"


def test_what_a_message_becomes_is_at_most_eighty_times_its_bytes():
    text = b'{"values": [' + b",".join([b"[]"] * 100_000) + b"]}"
    tracemalloc.start()
    try:
        message, tensors = receive(bytes_from(framed(text)))
        decode(message["values"], tensors, refuse)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 80 * len(text), (
        f"{len(text) >> 10} KiB became {peak >> 10} KiB; the longest of {wire.MOST_TEXT_BYTES >> 20} MiB is too long then")


def test_what_is_too_long_to_be_read_is_not_sent_either():
    with pytest.raises(Garbled, match="MiB of values; the most is 4"):
        frame({"values": "x" * (5 << 20)}, {})
    with pytest.raises(Garbled, match="MiB at once; the most is 64"):
        frame({"values": None}, {"0": torch.zeros(17 << 20)})


@pytest.mark.parametrize("node", [{"named": []}, {"named": [["a"], [1, 2]]}, {"range": [0, 1, 0]}, {"range": [1e9]},
                                  {"set": [[]]}, {"tensor": "7"}, {"dict": [1]}, {"bytes": "x"}])
def test_a_value_that_is_none_is_garbled(node: dict):
    with pytest.raises(Garbled):
        decode(node, {}, refuse)


def test_only_names_of_dtypes_are_looked_up_in_torch():
    for name in ("compile", "_inductor", "load", "__name__", "nn"):
        with pytest.raises(Garbled):
            decode({"dtype": name}, {}, refuse)
    assert decode({"dtype": "bfloat16"}, {}, refuse) is torch.bfloat16
