"""Hooks that belong together, taken off together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from loraprune.groups import Group


class Hooks:
    """The handles of a scorer's hooks, and the groups it watches."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = {group.name: group for group in groups}
        self._handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args)` before each forward pass of a module."""
        self._handles.append(module.register_forward_pre_hook(hook))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, output)` after each forward pass of a module."""
        self._handles.append(module.register_forward_hook(hook))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: between two steps nothing is held."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""

    def resize(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of the smaller model."""
        self.groups = {group.name: group for group in groups}

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
