"""From a criterion to one score per unit: tiles of projections, or hooks on activations, reduced over spans.

No out x in temporary is ever formed: a tile is at most TILE_BYTES. Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraprune.adapters import Projection, find_module, projection
from loraprune.criteria.base import Criterion, Tile
from loraprune.errors import ConfigError
from loraprune.groups import Group, Side, Span

TILE_BYTES = {"cpu": 1 << 19}
"""tile size: fits the second-level cache of a CPU core, so that a tile's five passes read memory once"""
TILE_BYTES_DEVICE = 1 << 26


Kept: TypeAlias = Mapping[str, Sequence[int]]
"""group name -> units"""


@runtime_checkable
class Scorer(Protocol):
    """Gives the scores of the present units after the last backward pass of an optimiser step."""

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return group -> unit scores on the CPU, and forget what was gathered for this step.

        Of a masked model, `kept` names the units that are left: only these are scored.
        """

    def resize(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of the smaller model."""

    def close(self) -> None:
        """Remove all hooks."""


def make_scorer(
    criterion: Criterion, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool, seed: int
) -> Scorer:
    """Return the scorer of a criterion on an adapted model."""
    if criterion.kind == "gate":
        return GateScorer(criterion, model, groups)
    return SaliencyScorer(criterion, model, groups, power=power, normalize=normalize, seed=seed)


class SaliencyScorer:
    """Reduces an elementwise criterion tile by tile to row and column sums, and these to units."""

    def __init__(
        self, criterion: Criterion, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool, seed: int
    ) -> None:
        self.criterion, self.model, self.groups = criterion, model, tuple(groups)
        self.power, self.normalize = power, normalize
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the power-transformed saliencies, summed over the weights that each unit owns.

        Source: Eq 4; with `normalize`, each span's scores are divided by their L2 norm first, as in the authors' code.
        """
        scores = {}
        for group in self.groups:
            left = torch.tensor(kept[group.name] if kept else range(group.units))
            total = torch.zeros(len(left), dtype=torch.float64)
            sums: dict[str, dict[Side, Tensor]] = {}
            for span in group.spans:
                if span.side == "norm":
                    continue
                if span.module not in sums:
                    wanted = {s.side for s in group.spans if s.module == span.module}
                    sums[span.module] = self._project(projection(self.model, span.module), wanted)
                part = _per_unit(sums[span.module][span.side], span, group.units)[left]
                norm = part.norm() if self.normalize else torch.tensor(1.0)
                total += part / norm if norm > 0 else part
            scores[group.name] = total
        return scores

    def _project(self, proj: Projection, wanted: set[Side]) -> dict[Side, Tensor]:
        rows, columns = proj.shape
        device = proj.lora_a.device
        dtype = torch.promote_types(torch.float32, proj.lora_a.dtype)
        a, b = proj.lora_a.detach().to(dtype), proj.lora_b.detach().to(dtype)
        grad_a, grad_b = (
            self._gradient(proj.lora_a, proj.path).to(dtype),
            self._gradient(proj.lora_b, proj.path).to(dtype),
        )
        if self.criterion.fused:
            whole = Tile(
                base=proj.base_rows(0, rows), a=a, b=b, grad_a=grad_a, grad_b=grad_b, scaling=proj.scaling,
                generator=self.generator,
            )  # fmt: skip
            sums = self.criterion.fused(whole, power=self.power, rows="out" in wanted, columns="in" in wanted)
            sides: tuple[Side, Side] = ("out", "in")
            return {side: part.double().cpu() for side, part in zip(sides, sums, strict=True) if part is not None}
        out = torch.empty(rows, dtype=dtype, device=device)
        in_ = torch.zeros(columns, dtype=dtype, device=device)
        step = max(1, TILE_BYTES.get(device.type, TILE_BYTES_DEVICE) // (columns * dtype.itemsize))
        assert self.criterion.saliency is not None
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            tile = Tile(
                base=proj.base_rows(start, stop).to(dtype), a=a, b=b[start:stop], grad_a=grad_a,
                grad_b=grad_b[start:stop], scaling=proj.scaling, generator=self.generator,
            )  # fmt: skip
            saliency = self.criterion.saliency(tile)
            saliency = saliency.square() if self.power == 2 else saliency.abs()
            if "out" in wanted:
                torch.sum(saliency, dim=1, out=out[start:stop])
            if "in" in wanted:
                in_ += saliency.sum(0)
        return {"out": out.double().cpu(), "in": in_.double().cpu()}

    def _gradient(self, parameter: nn.Parameter, path: str) -> Tensor:
        if parameter.grad is not None:
            return parameter.grad.detach()
        if self.criterion.needs_gradient:
            raise ConfigError(
                f"the criterion {self.criterion.name!r} needs gradients, but LoRA on {path!r} has none: "
                "is the adapter frozen, or was the step skipped?"
            )
        return torch.zeros_like(parameter)

    def resize(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of the smaller model."""
        self.groups = tuple(groups)

    def close(self) -> None:
        """Do nothing: there are no hooks."""


def _per_unit(sums: Tensor, span: Span, units: int) -> Tensor:
    """Sum the entries of each unit of a span."""
    return sums[span.offset : span.offset + units * span.width].view(units, span.width).sum(1)


class GateScorer:
    """Gathers a gate criterion with hooks on the inputs of the consuming projections, over all micro-batches."""

    def __init__(self, criterion: Criterion, model: nn.Module, groups: Sequence[Group]) -> None:
        assert criterion.gate is not None
        self.gate, self.groups = criterion.gate, {group.name: group for group in groups}
        self.sums: dict[str, Tensor] = {}
        self.samples: dict[str, int] = {}
        self.handles: list[RemovableHandle] = []
        for group in groups:
            for span in group.spans:
                if span.side == "in":
                    self._watch(find_module(model, span.module), group.name)

    def _watch(self, module: nn.Module, name: str) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = args[0]
            if z.requires_grad:  # not in evaluation, nor in the first pass of gradient checkpointing
                values = z.detach()  # a hook that held z itself would be a cycle and keep the graph with its old shapes
                z.register_hook(lambda grad: self._gather(name, values, grad))

        self.handles.append(module.register_forward_pre_hook(on_forward))

    @torch.no_grad()
    def _gather(self, name: str, z: Tensor, grad: Tensor) -> None:
        scores = self.gate(z.flatten(1, -2), grad.flatten(1, -2), self.groups[name].units)
        self.sums[name] = self.sums[name] + scores if name in self.sums else scores
        self.samples[name] = self.samples.get(name, 0) + len(z)

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the mean over samples of each unit's score, summed over a group's consuming projections."""
        missing = [name for name in self.groups if name not in self.sums]
        if missing:
            raise ConfigError(
                f"no gradient reached the input of {missing[0]!r}: the gate criterion needs a training step"
            )
        scores = {name: (self.sums[name] / self.samples[name]).double().cpu() for name in self.groups}
        self.sums.clear()
        self.samples.clear()
        return {name: values[torch.tensor(kept[name])] for name, values in scores.items()} if kept else scores

    def resize(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of the smaller model."""
        self.groups = {group.name: group for group in groups}

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
