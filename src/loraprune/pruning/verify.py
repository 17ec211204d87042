"""Verify a saved model: the masked dense model, the sliced model and the model loaded from disk must agree.

Knows nothing about how the model was made.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.errors import Findings, NumericsError, VerificationError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import Inputs
from loraprune.families.depth import gone_layers
from loraprune.groups import Group, Side, Span, kept_entries, layer_path, sides
from loraprune.models.adapters import base_layer, cuts, find_module, linear_paths, merging_error
from loraprune.models.streaming import at_hand
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from loraprune.pruning.surgery import rescale_norm_

logger = logging.getLogger(__name__)

FLOOR = {torch.float64: 1e-8, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""difference of two logits, relative to the largest logit, that is always allowed: summation order, and rounding in 16 bits"""
MARGIN = 8
"""factor of a model's rounding noise that gives the allowed difference, if that is more than the floor"""
ROUNDED_TOLERANCE = 0.15
"""the floor where activations are rounded to 8 bits: 0.04 was measured on random models"""
MIXTURES = 16
"""numbers that stand for a unit's weights"""
ROUNDED_UNITS = 0.4
"""largest difference of the mixtures of a span's units that were quantised twice, relative to their norm; of other units it is 1.4"""


@dataclass(frozen=True, slots=True)
class Verification:
    """Largest differences of logits, relative to the largest logit."""

    masked_vs_sliced: float
    sliced_vs_reloaded: float
    tolerance: float
    """largest difference allowed: the floor of the precision, or `MARGIN` times the merged model's noise if that is more"""
    precision: str | None
    """what all sides were computed in; reports that are older than these figures have None"""
    adapted_vs_merged: float | None
    rounding: float | None
    """how far rounding the merged weights to the file's precision moves the logits; 0 if the file is as precise"""
    noise: Mapping[str, float | None]
    """`dense` and `merged`: logits in the model's precision against those in the next wider one; None where memory is too short"""
    saved_as: str
    """model type of the reloaded model"""
    failed: tuple[str, ...] = ()
    """one sentence for every check that failed"""


def tolerance(dtype: torch.dtype, noise: float | None = None) -> float:
    """Return the largest difference allowed in a precision for a model of this rounding noise."""
    return max(FLOOR[dtype], MARGIN * (noise or 0.0))


def check_difference(
    what: str, value: float, dtype: torch.dtype, *, noise: float | None = None, rounded: bool = False
) -> float:
    """Return `value`, or raise a VerificationError if it exceeds what rounding explains.

    `noise` is the model's own (`rounding_noise`); `rounded` says that one of the two rounds its activations to 8 bits, as LLM.int8
    does on a GPU.

    Raises:
        NumericsError: if the value is NaN.
    """
    if math.isnan(value):
        raise NumericsError(
            f"{what}: after the last step logits are NaN or infinite: lower --lr, or use --dtype float32"
        )
    allowed = max(tolerance(dtype, noise), ROUNDED_TOLERANCE if rounded else 0.0)
    if not value <= allowed:
        raise VerificationError(f"{what}: logits differ by {value:.2e} of the largest, rounding explains {allowed:.0e}")
    return value


def check_merging(model: nn.Module, groups: Sequence[Group]) -> None:
    """Check on one projection of every shape that LoRA can be merged: hours before the whole model is.

    Raises:
        VerificationError: if what PEFT merges is something else than what pruning scores.
    """
    seen: set[tuple[object, ...]] = set()
    for path in linear_paths([group for group in groups if group.units]):  # a layer that is gone has no weights
        module = find_module(model, path)
        layer = base_layer(module)
        kind = (type(module), type(layer), *next(cuts(layer, "out")).shape)
        if kind in seen:
            continue
        seen.add(kind)
        with at_hand(module):
            found = merging_error(model, path)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if found is not None and not found <= MARGIN * torch.finfo(weight.dtype).eps:
            raise VerificationError(
                f"{path!r}: merging LoRA changes its weight by {found:.1e} more than rounding explains"
            )


class Checks:
    """The comparisons at the end of a run. A failure is reported after the folder is finished, so that no work is lost."""

    def __init__(self, dtype: torch.dtype, noise: float | None) -> None:
        """Take the precision in which all sides are computed, and the rounding noise of the merged model in it."""
        self.dtype, self.noise = dtype, noise
        self.findings = Findings()
        self.adapted_vs_merged = self.masked_vs_sliced = self.sliced_vs_reloaded = self.rounding = 0.0

    def compare(
        self, what: str, one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"], *, rounded: bool = False
    ) -> float:
        """Return how far two models' logits are from each other, and note it if rounding does not explain it.

        Raises:
            NumericsError: if logits are NaN or infinite.
        """
        found = difference(one, other)
        with self.findings.check():
            check_difference(what, found, self.dtype, noise=self.noise, rounded=rounded)
        if any(isinstance(error, NumericsError) for error in self.findings.errors):
            raise self.findings.errors[-1]
        return found

    def verification(self, *, saved_as: str, dense_noise: float | None) -> Verification:
        """Return all results; `dense_noise` is that of the dense model before any work."""
        return Verification(
            masked_vs_sliced=self.masked_vs_sliced, sliced_vs_reloaded=self.sliced_vs_reloaded,
            tolerance=tolerance(self.dtype, self.noise), precision=str(self.dtype).removeprefix("torch."),
            adapted_vs_merged=self.adapted_vs_merged, rounding=self.rounding,
            noise={"dense": dense_noise, "merged": self.noise}, failed=tuple(self.findings.problems()), saved_as=saved_as,
        )  # fmt: skip


@torch.no_grad()
def fill_dense_(
    dense: PreTrainedModel, sliced: Mapping[str, Shaped[Tensor, "..."]], groups: Sequence[Group], plan: Plan
) -> None:
    """Write the kept weights of a sliced model into their places in the dense one; dropped units stay as they were.

    `sliced` maps names of tensors to the sliced model's tensors, each of which is read once. Modifies `dense`.
    """
    entries = kept_along(dense, groups, plan)
    norms = {f"{span.module}.weight" for group in groups for span in group.spans if span.side == "norm"}
    # Tied weights are stored once, and named_parameters names each once; buffers that are not stored follow from the shapes.
    stored = [(name, buffer) for name, buffer in dense.named_buffers() if name in sliced]
    gone = gone_layers({name: len(kept) for name, kept in plan.kept.items()})
    for name, tensor in (*dense.named_parameters(), *stored):
        if layer_path(name) in gone:
            continue
        values, cut_dims = sliced[name], entries.get(name, {})
        if name in norms:
            values = values.to(tensor, copy=True)
            rescale_norm_(values, before=len(values), after=len(tensor))
        with at_hand(dense.get_submodule(name.rpartition(".")[0]), write=True, deep=False):
            if cut_dims:
                tensor[_grid(tensor, cut_dims)] = values.to(tensor)
            else:
                tensor.copy_(values)


def kept_along(model: nn.Module, groups: Sequence[Group], plan: Plan) -> dict[str, dict[int, Int[Tensor, " left"]]]:
    """Return for every frozen tensor that the plan cuts, dimension by dimension, the entries that stay."""
    entries: dict[str, dict[int, Int[Tensor, " left"]]] = {}
    for group in groups:
        for (path, side), spans in sides(group).items():
            for cut in cuts(base_layer(find_module(model, path)), side):
                size = cut.size
                dims = entries.setdefault(f"{path}.{cut.name}", {})
                dims[cut.dim] = torch.from_numpy(kept_entries(size, spans, group.units, plan.kept[group.name]))
    return entries


def _grid(tensor: Tensor, kept: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Return an index of the entries that stay along every dimension, which broadcast against each other."""
    every = [kept.get(dim, torch.arange(size)).to(tensor.device) for dim, size in enumerate(tensor.shape)]
    return torch.meshgrid(*every, indexing="ij")


FROZEN: tuple[Side, ...] = ("out", "in", "router", "expert_out")
"""sides whose weights no training step changes"""

UnitSums: TypeAlias = Mapping[tuple[str, Span], Float[Tensor, "_units mixtures"]]
"""group name and span -> random mixtures of the frozen weights of every unit"""


@torch.no_grad()
def unit_sums(
    model: nn.Module, groups: Sequence[Group], *, plan: Plan | None = None, changed: Collection[Side] = ()
) -> UnitSums:
    """Return a fingerprint of every unit's frozen weights on the sides that were not `changed`, adapters left out.

    Of a dense model, `plan` leaves out the units that are not kept.
    """
    sums: dict[tuple[str, Span], Tensor] = {}
    entries = kept_along(model, groups, plan) if plan else {}
    for group in groups:
        for place, span in enumerate(s for s in group.spans if s.side in FROZEN and s.side not in changed):
            layer = base_layer(find_module(model, span.module))
            cut = next(cuts(layer, span.side))
            with at_hand(layer):
                tensor = cut.values()
                for dim, kept in entries.get(f"{span.module}.{cut.name}", {}).items():
                    tensor = tensor if dim == cut.dim else tensor.index_select(dim, kept.to(tensor.device))
                rows = tensor.movedim(cut.dim, 0).flatten(1)
                rows = rows[span.offset : span.offset + group.units * span.width].double()
            owned = (rows @ _mixtures(rows)).view(group.units, span.width, MIXTURES).sum(1)
            chosen = owned[list(plan.kept[group.name])] if plan else owned
            sums[group.name, replace(span, offset=place)] = chosen.cpu()
    return sums


def _mixtures(rows: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns mixtures"]:
    """Return factors that are always the same for as many columns: plain sums of trained weights may cancel."""
    drawn = torch.randn(rows.shape[1], MIXTURES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(rows.device)


def check_units(dense: UnitSums, sliced: UnitSums, *, rounded: bool = False) -> None:
    """Raise a VerificationError unless the sliced model holds exactly the units that the plan of `dense` keeps.

    `sliced` must be taken before LoRA is merged: frozen weights are the dense model's own, or where columns of 4-bit blocks were cut
    (`rounded`) near to them.
    """

    def agree(found: Tensor, expected: Tensor) -> bool:
        if found.shape != expected.shape:
            return False
        close = torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
        return close or (rounded and bool((found - expected).norm() <= ROUNDED_UNITS * expected.norm()))

    for (name, span), found in sliced.items():
        expected = dense[name, span]
        if not agree(found, expected):
            raise VerificationError(f"{span.module!r} does not hold the units that the plan of {name!r} names")


def masked_logits(
    dense: PreTrainedModel,
    sliced: Mapping[str, Shaped[Tensor, "..."]],
    groups: Sequence[Group],
    plan: Plan,
    inputs: Inputs,
) -> Float[Tensor, "..."]:
    """Return the logits of the dense architecture with the kept weights filled in and dropped units masked.

    Modifies `dense`, whose dropped units keep their own, non-zero weights: only the masks silence them.
    """
    fill_dense_(dense, sliced, groups, plan)
    masks = Masks(dense, groups)
    masks.set(plan.kept)
    logits = logits_of(dense, inputs)
    masks.remove()
    return logits
