"""Sets of hooks that are removed together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraprune.groups import Group

GradientHook: TypeAlias = Callable[[Float[Tensor, "..."], Float[Tensor, "..."]], None]
"""function of a tensor that was saved in the forward pass, and of the gradient of the one that was passed on"""


class _CallInBackward(torch.autograd.Function):
    """Passes a tensor on unchanged; the backward pass calls a function with its gradient and another tensor that autograd saved."""

    @staticmethod
    def forward(ctx: Any, passed: Tensor, saved: Tensor, hook: GradientHook) -> Tensor:
        ctx.save_for_backward(saved)
        ctx.hook = hook
        return passed.view_as(passed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (saved,) = ctx.saved_tensors
        ctx.hook(saved.detach(), grads[0])
        return grads[0], None, None


def call_in_backward(
    passed: Float[Tensor, "..."], saved: Float[Tensor, "..."], hook: GradientHook
) -> Float[Tensor, "..."]:
    """Return `passed`, for the model to use: its backward pass calls `hook` with `saved` and the gradient of `passed`.

    A hook on the gradient would hold what it closes over until the whole backward pass is finished, in gradient checkpointing the
    activations of all layers; tensors that autograd saves are freed, or recomputed, layer by layer.
    """
    handed_on: Tensor = _CallInBackward.apply(passed, saved, hook)
    return handed_on


class Hooks:
    """The handles of a scorer's hooks, and its groups."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = {group.name: group for group in groups}
        self._handles: list[RemovableHandle] = []
        self._listening = True

    def listen(self, on: bool) -> None:
        """Run the hooks in the next passes, or not."""
        self._listening = on

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args)` before each forward pass of a module."""
        self._handles.append(module.register_forward_pre_hook(lambda *given: hook(*given) if self._listening else None))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, output)` after each forward pass of a module."""
        self._handles.append(module.register_forward_hook(lambda *given: hook(*given) if self._listening else None))

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: nothing is held between two steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def resize(self, groups: Sequence[Group]) -> None:
        """Use the groups of the smaller model from now on."""
        self.groups = {group.name: group for group in groups}

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
