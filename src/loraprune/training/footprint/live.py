"""Count the bytes of all live tensors by purpose, their peak, and FLOPs.

Works with tensors of any device, also of the meta device. Knows nothing about models.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten: Any = torch.ops.aten
Name: TypeAlias = Callable[[Shaped[Tensor, "..."]], str]


class LiveBytes(TorchDispatchMode):
    """Watches every operation while it is entered; `present` are tensors that are counted elsewhere.

    A question about the values of a meta tensor (is anything masked?) is answered with yes: rows without padding.
    """

    def __init__(self, present: Iterable[Shaped[Tensor, "..."]], *, name: Name) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()
        """kind of tensor -> bytes"""
        self.phases: list[list[Mapping[str, int]]] = [[]]
        """what was live after every operation, by the phases that `begin_phase` separates"""
        self.flops = 0
        self._name = name
        self._kinds: dict[int, str] = {}
        """storage -> kind, of those that live"""
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._present = {tensor.untyped_storage()._cdata for tensor in present}

    @property
    def peak(self) -> int:
        """Return the most bytes that were live after an operation."""
        return max((sum(live.values()) for phase in self.phases for live in phase), default=0)

    def begin_phase(self) -> None:
        """Note the next operations separately from the ones before."""
        self.phases.append([])

    def call_it(self, tensor: Shaped[Tensor, "..."], kind: str) -> None:
        """Count a live tensor as another kind from now on."""
        storage = tensor.untyped_storage()
        if former := self._kinds.get(storage._cdata):
            self.live[former] -= storage.nbytes()
            self.live[kind] += storage.nbytes()
            self._kinds[storage._cdata] = kind

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out an operation and note the tensors that it made."""
        if func is aten._local_scalar_dense.default and args[0].device.type == "meta":
            return True
        out = func(*args, **(kwargs or {}))
        outputs = [each for each in (out if isinstance(out, tuple | list) else (out,)) if isinstance(each, Tensor)]
        formula = flop_registry.get(func.overloadpacket)
        if formula and outputs and outputs[0].numel():  # attention's divides by the heads, of which none may be left
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in outputs:
            self._note(tensor)
        self.phases[-1].append(dict(self.live))
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._present or key in self._kinds:
            return
        self._kinds[key] = kind = self._name(tensor)
        size = storage.nbytes()
        self.live[kind] += size

        def forget(_: object) -> None:
            self.live[self._kinds.pop(key)] -= size
            del self._watches[key]

        self._watches[key] = weakref.ref(storage, forget)
