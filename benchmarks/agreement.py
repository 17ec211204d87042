"""Does the LoRA estimate rank units as the true gradient does? Over training, by projection and side.

    python benchmarks/agreement.py

At some steps, unit scores from a criterion on A and B (Eq 9 and 10 by default) stand against those from G = dL/dW of the same
batch, in Spearman's rank correlation. G is formed for one matrix at a time and reduced to unit scores at once.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import common
from torch import Tensor, nn
from transformers import TrainerCallback

from loraprune.config.training import FinetuneConfig
from loraprune.groups import Group
from loraprune.models.adapters import attach_lora, find_module, is_transposed, projection
from loraprune.pruning.correlation import spearman
from loraprune.reporting import plotting
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.training.guard import StepGuard
from loraprune.training.resume.keeper import Keeper
from loraprune.training.setup import check_run, load_run
from loraprune.training.trainer import train

PARTS = {"out": "rows", "in": "columns"}


def single_spans(groups: Sequence[Group]) -> list[Group]:
    """Return a group for every span, so that a scorer gives the scores of each projection by itself."""
    return [
        Group(f"{span.module}.{span.offset}.{span.side}", group.kind, group.units, (span,))
        for group in groups
        for span in group.spans
        if span.side != "norm"
    ]


class TrueGradient:
    """Scores units by (G * W)^2 in the backward pass, from what flows into and out of each projection."""

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self.model = model
        self.scores: dict[str, Tensor] = {}
        self.is_on = False
        by_module: dict[str, list[Group]] = {}
        for group in groups:
            by_module.setdefault(group.spans[0].module, []).append(group)
        for path, owned in by_module.items():
            self._watch(path, owned)

    def _watch(self, path: str, owned: Sequence[Group]) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if self.is_on and output.requires_grad:
                x = args[0].detach()
                output.register_hook(lambda grad: self._score(path, owned, x, grad))

        find_module(self.model, path).register_forward_hook(on_forward)

    @torch.no_grad()
    def _score(self, path: str, owned: Sequence[Group], x: Tensor, grad: Tensor) -> None:
        proj = projection(self.model, path)
        assert not is_transposed(proj.layer)
        weight = proj.base_rows(0, proj.shape[0]) + proj.scaling * proj.lora_b @ proj.lora_a
        saliency = (grad.flatten(0, -2).T @ x.flatten(0, -2)).mul_(weight).square_()
        for group in owned:
            span = group.spans[0]
            sums = saliency.sum(1 if span.side == "out" else 0)
            part = sums[span.offset : span.offset + group.units * span.width]
            self.scores[group.name] = part.view(group.units, span.width).sum(1).double().cpu()


class Agreement(TrainerCallback):
    """Compares both scores at some optimiser steps."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], *, criterion: str, steps: Sequence[int]) -> None:
        self.model, self.groups, self.steps = model, single_spans(groups), frozenset(steps)
        self.scorer = make_scorer(criteria.get(criterion), model, self.groups, power=2, normalize=False, seed=0)
        self.true = TrueGradient(model, self.groups)
        self.rows: list[dict[str, Any]] = []
        self.norms: list[dict[str, float]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gather the true gradient of the steps to come that are asked for."""
        self.true.is_on = state.global_step + 1 in self.steps

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compare, before anything is clipped or updated."""
        step = state.global_step + 1
        if step not in self.steps:
            return
        estimated, found = self.scorer.collect(), dict[tuple[str, str], list[float]]()
        for group in self.groups:
            span = group.spans[0]
            name = span.module.rpartition(".")[2] + (f"+{span.offset}" if span.offset else "")
            value = spearman(estimated[group.name].tolist(), self.true.scores[group.name].tolist())
            if value is not None:
                found.setdefault((name, PARTS[span.side]), []).append(value)
        for (name, side), values in found.items():
            mean = statistics.fmean(values)
            self.rows.append({"step": step, "projection": name, "side": side, "mean": mean, "layers": values})
            print(f"step {step} {name} {side}: {mean:.2f}", flush=True)
        modules = {group.spans[0].module for group in self.groups}
        pairs = [projection(self.model, path) for path in sorted(modules)]
        ratio = statistics.fmean((p.lora_b.norm() / p.lora_a.norm()).item() for p in pairs)
        self.norms.append({"step": step, "b_over_a": ratio})


def draw(rows: Sequence[Mapping[str, Any]], criterion: str, *, name: str) -> None:
    """Draw the correlation over the steps: solid lines for rows, dashed ones for columns."""
    series: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows:
        series.setdefault(f"{row['projection']} ({row['side']})", []).append((row["step"], row["mean"], 0.0))
    figure = plotting.new_figure(7.5, 4.5)
    axes = figure.subplots()
    plotting.lines(series, axes, style=lambda name: "--" if "columns" in name else "-")
    axes.set_xscale("log")
    plotting.plain_ticks(axes.xaxis)
    axes.set_xlabel("optimiser step (logarithmic)")
    axes.set_ylabel("rank correlation with the true gradient's scores")
    axes.set_ylim(-0.25, 1.05)
    axes.set_title(f"{criterion} against the true gradient, mean over layers", fontsize=11, loc="left")
    figure.legend(loc="outside right center", frameon=False)
    plotting.save(figure, common.RESULTS, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--criterion", default="lora")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dropout", type=float, default=0.0, help="with dropout A and B see another x than W does")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--at", type=int, nargs="*", default=[1, 2, 3, 5, 10, 20, 40, 80, 150], help="steps to compare at"
    )
    parser.add_argument("--name", default="agreement", help="name of the result files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = FinetuneConfig(
            model=options.model, data=options.data, output=str(Path(folder) / "none"), steps=max(options.at),
            length=options.length, batch=options.batch, lr=options.lr, dropout=options.dropout, seed=options.seed,
        )  # fmt: skip
        setup = check_run(config)
        held = load_run(setup)
        keeper = Keeper(Path(folder), {}, every=0, parts=[], guard=StepGuard())
    adapted = attach_lora(
        held.model, setup.groups, rank=config.rank, alpha=config.alpha, dropout=config.dropout, seed=config.seed
    )
    compared = Agreement(adapted, setup.groups, criterion=options.criterion, steps=options.at)
    train(adapted, setup.data, config=config, task=setup.task, callbacks=[compared], keeper=keeper)
    values = {"options": vars(options), "rows": compared.rows, "norms": compared.norms}
    common.write(options.name, values)
    draw(compared.rows, options.criterion, name=options.name)


if __name__ == "__main__":
    main()
