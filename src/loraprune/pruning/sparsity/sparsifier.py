"""Pruning of single weights while training: score, average, decide, mask. A `PruningMethod` like `Pruner`.

Knows nothing about the Trainer or data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.sparsity import Pattern, parse_pattern
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import (
    base_layer,
    base_model,
    config_of,
    cuts,
    find_module,
    is_transposed,
    linear_paths,
    projection,
    zero_weights_,
)
from loraprune.plan import Plan
from loraprune.pruning.removed import Removed, Zeros
from loraprune.pruning.sparsity.masks import mask_weight
from loraprune.pruning.sparsity.saved import SavedZeros, count_saved
from loraprune.pruning.sparsity.scores import WeightScores
from loraprune.runtime import launch
from loraprune.runtime.processes import take_from_first_
from loraprune.scoring.criteria import Saliency, criteria
from loraprune.scoring.scorers.elementwise import tiles
from loraprune.scoring.scorers.saliency import saliency_rows


def weight_criterion(config: LoRAPruneConfig) -> Saliency:
    """Return the criterion that `config` names, or raise a ConfigError if it scores no single weights after a step."""
    criterion = criteria.get(config.chosen_criterion)
    if not isinstance(criterion, Saliency):
        fitting = [name for name in criteria.names() if isinstance(criteria.get(name), Saliency)]
        raise ConfigError(
            f"--sparsity {config.sparsity} --criterion {config.chosen_criterion}: it gives no score of single weights at the end of "
            f"a step; choose one of {', '.join(fitting)}"
        )
    return criterion


def check_sparsity(model: nn.Module, groups: Sequence[Group], config: LoRAPruneConfig) -> Pattern:
    """Return the pattern that `config` asks for, adapters attached or not.

    Raises:
        ConfigError: if the model reads images, the criterion scores no weights, or blocks do not divide a projection's inputs.
    """
    assert isinstance(config.sparsity, str)
    pattern = parse_pattern(config.sparsity)
    weight_criterion(config)
    if launch.is_sharded():
        raise ConfigError(
            f"--sparsity {config.sparsity}: FSDP shards weights, which then cannot be masked; launch without --use_fsdp"
        )
    if getattr(base_model(model), "main_input_name", "") == "pixel_values":
        # Their files have names of their own, and the check of a saved pattern reads files.
        raise ConfigError(
            f"--sparsity {config.sparsity}: weights of image models are not zeroed, only units removed; leave it out"
        )
    for path in linear_paths(groups):
        cut = next(cuts(find_module(model, path), "in"))
        inputs = cut.tensor.shape[cut.dim]
        if inputs % pattern.block:
            raise ConfigError(
                f"--sparsity {config.sparsity}: {path!r} has {inputs} inputs, which blocks of {pattern.block} do not divide; "
                "choose a block that does, or --sparsity unstructured"
            )
    return pattern


class Sparsifier:
    """Owns the scores and masks of all weights of one adapted model's prunable projections."""

    def __init__(self, model: nn.Module, config: LoRAPruneConfig, pattern: Pattern | None = None) -> None:
        self.model, self.config = model, config
        self.dense_config = copy.deepcopy(config_of(model))
        self.groups = find_groups(config_of(model))
        self.pattern = pattern or check_sparsity(model, self.groups, config)
        self.present = self.groups
        """groups of the model as it is now: units stay"""
        self.plan = Plan.full(self.groups)
        shapes = {path: projection(model, path).shape for path in linear_paths(self.groups)}
        device = projection(model, next(iter(shapes))).lora_a.device
        self.final = {path: self.pattern.zeros(out * in_, config.ratio) for path, (out, in_) in shapes.items()}
        """zeros that every projection ends with"""
        self.kept: dict[str, Bool[Tensor, "out in_"]] = {
            path: torch.ones(shape, dtype=torch.bool, device=device) for path, shape in shapes.items()
        }
        self._masked = dict.fromkeys(shapes, 0)
        self._weights = sum(out * in_ for out, in_ in shapes.values())
        self.scores = WeightScores(shapes, decay=config.decay, device=device)
        self.is_done = not any(self.final.values())
        """whether the target is reached"""
        self._generator = torch.Generator().manual_seed(config.seed)
        self._largest: dict[str, Tensor] = {}
        """path -> its largest saliency in the last step, which is NaN or infinite if one is"""
        self._saved: SavedZeros | None = None

    def counts(self) -> dict[str, int]:
        """Return the units that every group keeps: all."""
        return {group.name: group.units for group in self.groups}

    def ratio(self) -> float:
        """Return the fraction of weights that are masked now."""
        return sum(self._masked.values()) / self._weights

    @torch.no_grad()
    def score(self, finite: Bool[Tensor, ""] | None = None) -> Bool[Tensor, ""]:
        """Add the saliencies of this step to the average; gradients must be gathered, unscaled and unclipped.

        Those that are NaN or infinite are left out, and all if `finite` is false: whether losses and gradients are finite.

        Source: Eq 10 and 11, without the sum of Eq 4.

        Returns:
            Whether neither is so, on the device of the scores: this waits for no device.
        """
        criterion, power = weight_criterion(self.config), self.config.power
        for path in self.kept:
            proj = projection(self.model, path)
            found = tiles(proj, saliency_rows(criterion, proj, self._generator), power=power)
            largest = [self.scores.update(path, start, saliency, finite=finite) for start, saliency in found]
            self._largest[path] = torch.stack(largest).amax()
        self.scores.updates += 1
        fine = torch.isfinite(torch.stack(list(self._largest.values())).amax())
        return fine if finite is None else fine & finite

    def problem(self) -> str | None:
        """Return which score of the last step is NaN or infinite, in one sentence."""
        odd = {path: float(value) for path, value in self._largest.items() if not torch.isfinite(value)}
        return f"a score of {next(iter(odd))!r} is {next(iter(odd.values()))}" if odd else None

    def forget(self) -> None:
        """Do nothing: steps that are not scored change nothing."""

    def listen(self, on: bool) -> None:
        """Do nothing: nothing is gathered before a step is scored."""

    def note(self, step: int) -> None:
        """Do nothing: the scores of single weights would be as large as the model at every step."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs; the masks follow from the scores."""
        return {
            "scores": self.scores.values, "updates": self.scores.updates, "masked": self._masked,
            "generator": self._generator.get_state(), "done": self.is_done,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()` for a model without masks."""
        for path, values in state["scores"].items():
            self.scores.values[path].copy_(values)
            self._masked[path] = int(state["masked"][path])
            if self._masked[path]:
                self.kept[path] = self.scores.left(path)
                mask_weight(self.model, path, self.kept[path])
        self.scores.updates, self.is_done = int(state["updates"]), bool(state["done"])
        self._generator.set_state(state["generator"])

    def release(self) -> None:
        """Drop the reference to the model, so that its memory can be freed."""
        self.model = nn.Module()

    @torch.no_grad()
    def remove(
        self,
        progress: float,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rows: object = None,
        is_tuned: bool = False,
    ) -> None:
        """Mask the lowest weights of every projection until `progress` (0 to 1) of the way to the target.

        In a pattern of blocks the blocks do not step from M weights to M - 1 all at once: at any time the lowest of the
        weights that may go are gone, so that the ratio follows the schedule as smoothly as without a pattern. `optimizer` is
        unchanged: LoRA's factors keep their shapes. `rows` are None: there is no recovery, whether training follows or not.

        Raises:
            NumericsError: if the scores are useless: none were gathered, or all weights of a projection score the same.
        """
        for path, final in self.final.items():
            count = round(final * progress)
            if count == self._masked[path]:
                continue
            self.scores.check(path)
            self.kept[path] = self.scores.drop(path, self.pattern, count)
            take_from_first_([self.kept[path]])
            mask_weight(self.model, path, self.kept[path])
            self._masked[path] = count
        self.is_done = progress >= 1

    def finish(self) -> None:
        """Do nothing: the masks are a part of the model until `merge_lora` writes them into the weights."""

    def cut(self, model: nn.Module) -> None:
        """Do nothing: sharded weights are refused, and nothing is cut."""

    def check_saved(self, folder: Path, dense: nn.Module) -> None:
        """Check zeros and pattern in the files of a folder, and mask the `dense` model, so that it can be compared with them.

        Modifies `dense`.

        Raises:
            VerificationError: if a file holds anything but the masked weights.
        """
        layers = {path: base_layer(find_module(dense, path)) for path in self.kept}
        for path, layer in layers.items():
            zero_weights_(layer, self.kept[path])
        transposed = any(is_transposed(layer) for layer in layers.values())
        self._saved = count_saved(
            folder, self.kept, self.pattern if self.is_done else Pattern(1, 1), transposed=transposed
        )

    def removed(self) -> Removed:
        """Return the report's entry about the zeros, counted in the saved files."""
        assert self._saved is not None
        asked, saved = self.pattern.ratio(self.config.ratio), self._saved
        zeros = Zeros(self.pattern.name, asked, saved.ratio, saved.zeros, saved.weights)
        return Removed(asked, saved.ratio, saved.weights, saved.weights - saved.zeros, sparsity=zeros)

    def unit_scores(self) -> None:
        """Return None: scores of single weights would be as large as the model."""

    def noted_scores(self) -> Mapping[str, Float[Tensor, " units"]]:
        """Return nothing, as `note` keeps nothing."""
        return {}
