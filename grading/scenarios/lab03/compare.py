"""Comparing what a submission answers with the truth, and asking it so that what was given can be looked at.

Knows tensors and where they are; knows nothing of networks.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grading.judge.checks import Wrong, expect, hold, kept, look, shown
from grading.sandbox.worker.peer import Raised, Remote

BF16, FLOAT16, FLOAT32 = 2.0**-8, 2.0**-11, 2.0**-24
"""The largest relative errors of one rounding."""
OPERATOR, NETWORK = 2e-5, 1e-4
"""Relative errors in float32."""
HEADS, COLUMNS, LOGITS = ("token", "head", "number"), ("token", "column"), ("request", "token id")
"""What the dimensions of a result count."""


def near(
    got: Any, truth: Tensor, what: str, allowed: float | Tensor = OPERATOR, dtype: torch.dtype = torch.float32,
    axes: tuple[str, ...] = (),
) -> None:
    """`got` has the shape of `truth`, this dtype, and is near it.

    Args:
        allowed: relative to the largest number, or else a tensor: the absolute error of each number.
        axes: what the dimensions count.
    """
    expect_tensor(got, what, tuple(truth.shape), dtype, axes)
    truth = truth.double()
    limit = allowed if isinstance(allowed, Tensor) else allowed * truth.abs().max()
    excess = torch.nan_to_num((got.double() - truth).abs(), nan=math.inf, posinf=math.inf) - limit
    if excess.max() > 0:
        place = tuple(int(i) for i in torch.unravel_index(excess.argmax(), excess.shape))
        where = ", ".join(f"{axis} {i}" for axis, i in zip(axes, place, strict=True)) if axes else str(list(place))
        raise Wrong(f"{what}: {f'at {where} ' if place else ''}expected {truth[place]:.6g}, found {float(got[place]):.6g}")


def expect_tensor(got: Any, what: str, shape: tuple[int, ...], dtype: torch.dtype, axes: tuple[str, ...] = ()) -> None:
    """It is a tensor of this shape and dtype."""
    counted = f" [{', '.join(axes)}]" if axes else ""
    expect(isinstance(got, Tensor), f"{what}: expected a tensor, found {shown(got)}")
    expect(tuple(got.shape) == shape, f"{what}: expected the shape {list(shape)}{counted}, found {list(got.shape)}")
    expect(got.dtype == dtype, f"{what}: expected {dtype}, as it came in, found {got.dtype}")


def asked(lab: Remote, call: Callable, names: str, *given: Any) -> Any:
    """`call(*given)`. The first of `given`, tensors of these names, must stay as they are."""
    held = [hold(lab, tensor) for tensor, _ in zip(given, names.split(), strict=False)]
    got = call(*held, *given[len(held) :])
    for name, tensor, there in zip(names.split(), given, held, strict=False):
        now = look(there)
        same = isinstance(now, Tensor) and now.dtype == tensor.dtype and torch.equal(now, tensor)
        expect(same, f"{name} was changed in place; whoever gave it still needs it")
    return got


def strided(lab: Remote, tensor: Tensor, first: int, second: int) -> Remote:
    """The same numbers there, in a memory where these two dimensions are exchanged."""
    return kept(hold(lab, tensor.transpose(first, second).contiguous()).transpose, first, second)


def elsewhere(lab: Remote, call: Remote, *given: Tensor) -> None:
    """`call` with tensors of the device "meta", which has shapes and no numbers: it may not bring others.

    Where it wants to read numbers, which is slow on a GPU, but not wrong, the other way round: what is made without saying
    where lies on "meta", and the tensors lie where numbers are.
    """
    there = [kept(hold(lab, tensor).to, "meta") for tensor in given]
    try:
        device = kept(call, *there).device.type
    except Raised as error:
        if "RuntimeError" not in error.kinds:
            raise
        if "meta tensor" in error.text:
            return where_it_came_in(lab, call, *given)
        expect("device" not in error.text, f"a tensor was made on another device than that of what came in: {error.text}")
        raise
    expect(device == "meta", f"what came in lay on the device meta; what came out lies on {shown(device)}")


def where_it_came_in(lab: Remote, call: Remote, *given: Tensor) -> None:
    """`call`, where every tensor that is made without a device lies on the device "meta": what comes out has numbers."""
    there, held, right = lab._peer.root.package("torch"), [hold(lab, tensor) for tensor in given], call(*given)
    there.set_default_device("meta")
    try:
        got = kept(call, *held)
        device = got.device.type
    except Raised as error:
        raise Wrong(f"a tensor was made on another device than that of what came in: {error.text}") from None
    finally:
        there.set_default_device(None)
    expect(device == "cpu", f"what came in lay on the CPU; what came out lies on {shown(device)}")
    near(look(got), right, "with another default device")
