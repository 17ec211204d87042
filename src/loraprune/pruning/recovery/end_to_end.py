"""End-to-end reconstruction: after a removal the projections are trained to reproduce the former outputs, on calibration rows.

The errors of all blocks are corrected together, by their effect on the output. Low-rank changes are trained, so that it takes no more
memory than training does: of the frozen weights where they are numbers, else of LoRA's factors. Knows nothing about scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from loraprune.errors import NumericsError
from loraprune.groups import Group
from loraprune.models.adapters import base_model, no_cache, trained_factors
from loraprune.models.modes import dropout_off
from loraprune.models.teacher_logits import TeacherLogits, divergence, top_of
from loraprune.pruning.recovery.changes import Change
from loraprune.pruning.recovery.descent import Descent
from loraprune.pruning.recovery.rows import LABELS, MASKS, Rows, on_device, rows_aside
from loraprune.runtime.progress import phase, shown

RATE = 8e-3
"""peak learning rate of LoRA's factors, divided by the adapters' scale, alpha over rank; docs/log.md compares values"""
PASSES = 3
"""default number of passes over the rows to learn from, at most; docs/log.md compares it with one"""
NEAR = 0.5
"""divergence in nats a token up to which one pass is enough where training follows"""
TOKENS = 256
"""tokens of a step, in whole rows"""
IMAGE_TOKENS = 256
"""tokens that an image is taken for"""
WARM_UP = 8
"""steps over which the learning rate grows, at most half of all"""
BETAS = (0.9, 0.95)
LARGEST_GRADIENT = 1.0
"""norm to which gradients are clipped"""


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a model's outputs from the former ones, and its loss, over some rows."""

    error: float
    """of predictions the divergence in nats a token or row, else the squared error of its last hidden states relative
    to what they were"""
    loss: float
    """mean loss; NaN without labels"""


class Outputs:
    """Outputs of a model for some rows: its predictions if it has a vocabulary, else its last hidden states.

    A head of few classes says little about the layers below it, and nothing while it is untrained. Where units are channels of the
    hidden states themselves, as in convolutional networks, its predictions are all that can be compared.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], rows: Rows, *, only_aside: bool = False) -> None:
        """Store the outputs. With `only_aside`, only those of the rows kept aside, on which a model is evaluated."""
        base = base_model(model)
        assert isinstance(base, PreTrainedModel)
        self.by_prediction = base.get_output_embeddings() is not None or any(g.kind == "channel" for g in groups)
        self.rows = rows
        count, longest = (shape := next(iter(rows.values())).shape)[0], shape[1] if len(shape) == 2 else IMAGE_TOKENS
        self.together = max(1, TOKENS // longest)
        """rows of a step"""
        self.aside = rows_aside(count)
        self.learned = (~self.aside if not self.aside.all() else self.aside).nonzero().flatten()
        wanted = self.aside.nonzero().flatten() if only_aside else torch.arange(count)
        self._place = torch.full((count,), -1).scatter(0, wanted, torch.arange(len(wanted)))
        parts = []
        with dropout_off(model), torch.no_grad():
            for chosen in shown(wanted.split(self.together), "reading the dense model's outputs"):
                outputs, _ = self.run(model, chosen)
                parts.append([part.cpu() for part in (top_of(outputs) if self.by_prediction else (outputs,))])
        self._given = [torch.cat(part) for part in zip(*parts, strict=True)]

    def run(
        self, model: nn.Module, chosen: Int[Tensor, " some"], *, labels: bool = False
    ) -> tuple[Float[Tensor, "rows *places width"], Float[Tensor, ""] | None]:
        """Return logits or last hidden states of some rows, and the loss where labels are to be used and there are some."""
        inputs = on_device(model, self.some(chosen))
        if not labels:
            inputs.pop(LABELS, None)
        found = base_model(model)(**(inputs | no_cache(model)), output_hidden_states=not self.by_prediction)
        if self.by_prediction:
            return found.logits, found.get("loss")
        states = found.get("decoder_hidden_states") or found.hidden_states
        return states[-1], found.get("loss")

    def some(self, chosen: Int[Tensor, " some"]) -> dict[str, Shaped[Tensor, "..."]]:
        """Return the inputs of some rows."""
        return {name: values[chosen.to(values.device)] for name, values in self.rows.items()}

    def error(self, outputs: Float[Tensor, "rows ..."], chosen: Int[Tensor, " some"]) -> Float[Tensor, ""]:
        """Return the mean distance of a model's outputs for some rows from those read, over the places that hold a token."""
        given = [part[self._place[chosen]].to(outputs.device) for part in self._given]
        present = self._present(outputs, chosen).to(outputs.device)
        if self.by_prediction:
            return divergence(outputs[present], TeacherLogits(*(part[present] for part in given))).mean()
        former = given[0][present].float()
        return functional.mse_loss(outputs[present].float(), former) / former.square().mean().clamp_min(1e-12)

    def _present(self, outputs: Tensor, chosen: Int[Tensor, " some"]) -> Bool[Tensor, "..."]:
        """Return which places of the outputs count: those a mask of their shape marks, or all."""
        for name in tuple(MASKS.values())[::-1]:
            mask = self.rows.get(name)
            if mask is not None and mask.shape[1:] == outputs.shape[1:2]:
                return mask[chosen.to(mask.device)].bool()
        return torch.ones(outputs.shape[:-1] if self.by_prediction else outputs.shape[:2], dtype=torch.bool)

    @torch.no_grad()
    def distance(self, model: nn.Module) -> Distance:
        """Return the distance of a model's outputs from the stored ones, on the rows kept aside."""
        places = self.aside.nonzero().flatten()
        error, loss = 0.0, 0.0
        with dropout_off(model):
            for chosen in places.split(self.together):
                outputs, found = self.run(model, chosen, labels=True)
                error += self.error(outputs, chosen).item() * len(chosen)
                loss += math.nan if found is None else found.item() * len(chosen)
        return Distance(error / len(places), loss / len(places))


def default_steps(outputs: Outputs, *, error: float = math.inf, is_tuned: bool = False) -> int:
    """Return the steps of `PASSES` passes over the rows to learn from, or of one.

    One pass is enough for outputs that are near by, if the model is trained further afterwards.

    Args:
        outputs: The outputs to reproduce.
        error: How far from them the model is.
        is_tuned: Whether training follows.
    """
    is_near = outputs.by_prediction and error <= NEAR
    return (1 if is_near and is_tuned else PASSES) * math.ceil(len(outputs.learned) / outputs.together)


def learn_outputs_(model: nn.Module, changes: Mapping[str, Change], outputs: Outputs, *, steps: int, seed: int) -> None:
    """Train the changes of projections so that a model reproduces `outputs`; call it after the cut, while it computes with them.

    Of projections without a change, which are quantised ones and convolutions, the LoRA factors are trained.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531); that few calibration rows are enough to
    recover from a cut is measured in docs/log.md.

    Raises:
        NumericsError: if an output is NaN or infinite.
    """
    rates = {factor: change.rate for change in changes.values() for factor in (change.a, change.b)}
    rates |= {factor: RATE / scale for factor, scale in trained_factors(model, without=changes).items()}
    descent = Descent(rates, steps, warm_up=max(1, min(WARM_UP, steps // 2)), betas=BETAS, largest=LARGEST_GRADIENT)
    generator = torch.Generator().manual_seed(seed)
    order = outputs.learned[:0]
    size = min(outputs.together, len(outputs.learned))
    with dropout_off(model), phase("end-to-end reconstruction", steps) as advance:
        for step in range(steps):
            if len(order) < size:
                order = torch.cat((order, outputs.learned[torch.randperm(len(outputs.learned), generator=generator)]))
            chosen, order = order[:size], order[size:]
            with torch.enable_grad():
                error = outputs.error(outputs.run(model, chosen)[0], chosen)
                if not torch.isfinite(error):
                    if step:  # the steps went too far, and are undone
                        return
                    raise NumericsError("end-to-end reconstruction: an output is NaN or infinite: use --dtype float32")
                # Not backward(): hooks that gather gradients across processes would wait for a step of training.
                gradients = torch.autograd.grad(error, list(rates), allow_unused=True)
            descent.step(gradients)
            advance(1)
