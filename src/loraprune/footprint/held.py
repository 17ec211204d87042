"""What 8-bit layers of bitsandbytes hold on to besides their weights.

Knows nothing about memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Holds(torch.autograd.Function):
    """Hands a tensor on, and holds it until its backward pass is done and nobody has the graph any more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.held = x
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@contextmanager
def inputs_held(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Let layers hold their inputs as those of bitsandbytes do in 8 bits: in a way that gradient checkpointing does not see.

    Source: bitsandbytes 0.50, `MatMul8bitLt` and `MatMul8bitFp` keep the input as an attribute of their context, though frozen
    weights do not need it. Copies of its outliers, which they keep too, depend on the data and are not counted.
    """

    def hold(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Holds.apply(args[0]), *args[1:])

    handles = [layer.register_forward_pre_hook(hold) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
