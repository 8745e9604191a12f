"""Lab 05: numbers that come back."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import Wrong, expect, shorter, shown
from grading.sandbox.worker.peer import Raised

DTYPES = (torch.float32, torch.bfloat16)
SIZES = (*DTYPES, torch.float64, torch.float8_e4m3fn, torch.int8)
"""Numbers of 4, 2, 8 and 1 bytes, and ints, in which caches and weights are kept, too."""


def of_any_dtype(call: Callable[..., Any], *arguments: Any) -> Any:
    """What `call` answers, one of whose arguments is a dtype; where it has none for ints, `Wrong` that says where it is."""
    [dtype] = [one for one in arguments if isinstance(one, torch.dtype)]
    try:
        return call(*arguments)
    except Raised as error:
        if dtype.is_floating_point or not {"TypeError", "ValueError", "KeyError"} & set(error.kinds):
            raise
        raise Wrong(
            f"{dtype} raised {error.kinds[0]}: {shorter(error.text)}. Caches and weights are kept in ints, too: "
            f"dtype.itemsize is the bytes of a number of any dtype, here {dtype.itemsize}") from None


def number(value: Any, what: str) -> float:
    """A finite number, from the worker."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    expect(type(value) in (int, float) and math.isfinite(value), f"{what} returned {shown(value)}; expected a number")
    return float(value)


def close(said: float, right: float) -> bool:
    """Whether two ways to compute a number agree: to what float32 keeps of it, a little more than 6e-8 a step."""
    return math.isclose(said, right, rel_tol=1e-6)
