"""Peak memory and time of a training step by base, checkpointing and criterion, beside what `loraprune plan` predicts.

A step is a forward and a backward pass, scoring, and AdamW on LoRA's factors. Criteria with hooks (gate, gradient) do most of their
work in the backward pass: what they cost is the step against plain LoRA's, and `scoring_seconds` is what is left for afterwards.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import footprint
import memory
import torch
from helpers import common
from torch import nn

from loraprune.api import attach_lora
from loraprune.config.base import Quantize
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.families import find_groups
from loraprune.models.adapters import linear_paths, projection
from loraprune.models.compat import enable_checkpointing
from loraprune.runtime.memory import peak_memory_bytes, reset_peak_memory
from loraprune.scoring import Scorer, make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.training.footprint import Setting
from on_gpu.shapes import Chosen, build, config_of, let_go, quantise_, synchronised

SCORED = ("plain LoRA", "lora", "gate", "gradient")
VANILLA = "vanilla"
"""autograd keeps the gradients of all projections, as LLM-Pruner does; `gradient` forms one at a time in hooks"""
REPEATS = 2
WORKERS = 6
"""processes that predict while the device measures"""


@dataclass(frozen=True)
class Case:
    """How the base is held, and what is measured with it."""

    base: Quantize
    checkpointing: bool
    batch: int
    variants: tuple[str, ...]


CASES = (
    Case("none", False, 4, ("plain LoRA", "lora", "gate", VANILLA)),
    Case("none", True, 8, (*SCORED, VANILLA)),
    Case("4bit", True, 8, ("plain LoRA", "lora", "gate")),
    Case("8bit", True, 8, ("plain LoRA", "lora", "gate")),
)


def see_no_device() -> None:
    """Leave the device that is measured alone: predicting takes no memory, but a context on it would."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def predict(shape: str, case: Case, variant: str, length: int) -> dict[str, int]:
    """Return what `loraprune plan` says that a step takes, by part."""
    setting = Setting(torch.bfloat16, quantize=case.base, checkpointing=case.checkpointing)
    options = LoRAPruneConfig(criterion=variant if variant in criteria.names() else "lora", compensate=False)
    return dict(footprint.predicted(config_of(shape), setting, options, batch=case.batch, length=length).parts)


class Stepper:
    """Training steps of one variant."""

    def __init__(self, model: nn.Module, groups: Sequence[Any], variant: str, rows: torch.Tensor) -> None:
        self.model, self.variant, self.rows = model, variant, rows
        self.scorer: Scorer | None = None
        if variant in criteria.names():
            self.scorer = make_scorer(criteria.get(variant), model, groups, power=2, normalize=False, seed=0)
        for name, parameter in model.named_parameters():
            if "base_layer" in name and parameter.is_floating_point():
                parameter.requires_grad_(variant == VANILLA)
        factors = [each for name, each in model.named_parameters() if "lora_" in name]
        self.optimiser = torch.optim.AdamW(factors, lr=1e-4, fused=True)

    def step(self) -> tuple[float, float]:
        """Return the seconds of a step and of scoring after its backward pass."""
        device = self.rows.device
        began = synchronised(device)
        self.model(input_ids=self.rows, labels=self.rows, use_cache=False).loss.backward()
        backward = synchronised(device)
        if self.scorer is not None:
            self.scorer.collect()
        elif self.variant == VANILLA:
            memory.vanilla_scores(self.model)
        scored = synchronised(device)
        self.optimiser.step()
        self.model.zero_grad(set_to_none=True)
        return synchronised(device) - began, scored - backward

    def close(self) -> None:
        """Take hooks off and let gradients go."""
        if self.scorer is not None:
            self.scorer.close()
        self.model.zero_grad(set_to_none=True)


def measure(model: nn.Module, groups: Sequence[Any], variant: str, rows: torch.Tensor, held: int) -> dict[str, Any]:
    """Return time and peak memory of steps after the first one, or why there was no room for them."""
    stepper, refused = Stepper(model, groups, variant, rows), None
    try:
        stepper.step()
        reset_peak_memory(rows.device)
        taken = [stepper.step() for _ in range(REPEATS)]
    except torch.OutOfMemoryError as error:
        refused = str(error).partition(". ")[0]
    stepper.close()
    if refused:
        return {"out_of_memory": refused}
    steps, scoring = zip(*taken, strict=True)
    return {
        "seconds": common.spread(steps), "scoring_seconds": common.spread(scoring),
        "scoring_share": sum(scoring) / sum(steps), "peak_memory_bytes": peak_memory_bytes(rows.device) - held,
    }  # fmt: skip


def measure_case(shape: str, case: Case, chosen: Chosen, *, length: int) -> Iterator[dict[str, Any]]:
    """Yield a row for every variant of a case."""
    held = let_go(chosen.device)
    base = build(config_of(shape), chosen.device)
    groups = find_groups(base.config)
    if case.base != "none":
        quantise_(base, groups, case.base)
    model = attach_lora(base, LoRAPruneConfig()).train()
    if case.checkpointing:
        enable_checkpointing(model)
    form = type(projection(model, linear_paths(groups)[0]).stored()).__name__
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(base.config.vocab_size, (case.batch, length), generator=generator).to(chosen.device)
    let_go(chosen.device)
    for variant in case.variants:
        row = measure(model, groups, variant, rows, held)
        let_go(chosen.device)
        yield {"base": case.base, "checkpointing": case.checkpointing, "batch": case.batch, "variant": variant,
               "read_as": form, **row}  # fmt: skip


def compare(rows: list[dict[str, Any]]) -> None:
    """Write into every row how it stands to the plain one of its case, and to what was predicted."""
    plain = {(row["base"], row["checkpointing"], row["batch"]): row for row in rows if row["variant"] == "plain LoRA"}
    for row in rows:
        first = plain[row["base"], row["checkpointing"], row["batch"]]
        if "seconds" in row and "seconds" in first:
            row["time_against_plain"] = row["seconds"]["median"] / first["seconds"]["median"]
            row["memory_against_plain"] = row["peak_memory_bytes"] / first["peak_memory_bytes"]
        if "predicted" in row and "peak_memory_bytes" in row:
            row["predicted_against_measured"] = sum(row["predicted"].values()) / row["peak_memory_bytes"]


def place_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from the others."""
    return row["base"], row["checkpointing"], row["batch"], row["variant"]


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield the rows so far; a case that fails leaves the others alone."""
    shape, length = ("tiny", 32) if chosen.tiny else ("7B", 512)
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    result = {"definition": __doc__, "shape": shape, "length": length, "rows": rows, "failed": failed}
    foreseen: dict[tuple[Any, ...], Future[dict[str, int]]] = {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1 if chosen.tiny else WORKERS, spawn, see_no_device) as pool:
        for case in CASES:
            for variant in case.variants:
                if variant != VANILLA:  # `plan` knows no such criterion
                    place = (case.base, case.checkpointing, case.batch, variant)
                    foreseen[place] = pool.submit(predict, shape, case, variant, length)
        for case in CASES:
            try:
                for row in measure_case(shape, case, chosen, length=length):
                    rows.append(row)
                    print(row, flush=True)
            except Exception:
                failed[str(case)] = traceback.format_exc()[-1500:]
            compare(rows)
            yield result
        for row in rows:
            if place_of(row) in foreseen:
                row["predicted"] = foreseen[place_of(row)].result()
        compare(rows)
        yield result
    if failed:
        raise SystemExit("; ".join(f"{case}: {text.splitlines()[-1]}" for case, text in failed.items()))
