"""Pruning in rounds: each is a whole run that starts from the merged model of the one before, with new, smaller LoRA factors.

    OUTPUT.partial/rounds/1/           the folder that the first round left
    OUTPUT.partial/rounds/2.partial/   the workspace of the round that is not finished

Knows nothing about training: whoever calls says how one round is run.
"""

from __future__ import annotations

import gc
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from loraprune.config.target import TARGETS
from loraprune.config.training import PruneConfig, as_dict
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of, tasks
from loraprune.families import find_groups
from loraprune.families.query_heads import as_planned
from loraprune.models.loading import load_with_head
from loraprune.models.opening import load_config
from loraprune.models.stored_tensors import stored_tensors
from loraprune.plan import Plan
from loraprune.pruning.preview import Preview, preview
from loraprune.pruning.removed import Removed
from loraprune.pruning.verify import check_difference, masked_logits
from loraprune.reporting.html.page import write_page
from loraprune.reporting.make import report_of_rounds
from loraprune.reporting.report import Report, read_report
from loraprune.reporting.write import write_folder
from loraprune.runtime.device import choose_device, choose_dtype
from loraprune.runtime.processes import first_alone, joined
from loraprune.runtime.run_file import write_run
from loraprune.runtime.workspace import ROUNDS, has_checkpoints, new_folder, workspace_of
from loraprune.training.resume.run import is_finished

RANK_FACTOR, LR_FACTOR = 0.5, 0.5
"""factor of rank and learning rate from round to round; chosen here, not measured yet"""
HEAD_KEYS = ("id2label", "label2id", "problem_type", "pad_token_id")
"""keys of config.json that may depend on the data of a run"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoundConfig(PruneConfig):
    """The options of one round."""

    turn: int = 0
    """rounds before this one: each shuffles the same rows again"""

    @property
    def order_seed(self) -> int:
        """Return the seed of the order of rows and of dropout."""
        return (self.seed + self.turn) % 2**32


def prune_in_rounds(config: PruneConfig, prune: Callable[[PruneConfig], Report]) -> Report:
    """Carry out `config.rounds` rounds by `prune`, and write the last one's folder, with plan and report relative to the dense model.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    with (
        joined("prune", config.device),
        new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume, costly=True) as folder,
    ):
        first_alone(lambda: store_options(config, folder.parent))
        aim = preview(config)
        places = [folder.parent / ROUNDS / str(number) for number in range(1, config.rounds + 1)]
        runs = {place: f"round {number}" for number, place in enumerate(places, 1)}
        reports = run_all(config, runs, partial(round_config, config, aim=aim, places=places), prune)
        return first_alone(lambda: _write_last(config, folder, places, reports, aim))


def store_options(config: PruneConfig, workspace: Path) -> None:
    """Store the options of the whole run for `loraprune resume`; those of an unfinished run stay until a round has replaced it."""
    if not has_checkpoints(workspace):
        write_run(workspace, config.job, as_dict(config))


def run_all(
    config: PruneConfig,
    runs: Mapping[Path, str],
    options: Callable[[int, Sequence[Removed]], RoundConfig],
    prune: Callable[[PruneConfig], Report],
) -> list[Report]:
    """Do runs that continue from each other, and return their reports.

    Args:
        config: The options of the whole run.
        runs: Folder and name of each, in order.
        options: The number of earlier runs, and what they removed -> the options of the next.
        prune: Does one run.
    """
    reports: list[Report] = []
    places = list(runs)
    for turn, (place, name) in enumerate(runs.items()):
        before = [report.removed for report in reports if report.removed]
        run_round(options(turn, before), places[turn:], prune, name=name)
        first_alone(lambda: write_run(places[0].parents[1], config.job, as_dict(config)))
        reports.append(read_report(place))
    return reports


def _write_last(
    config: PruneConfig, folder: Path, places: Sequence[Path], reports: Sequence[Report], aim: Preview
) -> Report:
    """Write the last round's folder, with plan and report relative to the dense model."""
    report, scores = as_one_run(config, folder, places, reports, aim)
    write_folder(folder, report, config, scores=scores)
    if config.html:
        write_page(folder)
    return report


def as_one_run(
    config: PruneConfig, folder: Path, places: Sequence[Path], reports: Sequence[Report], aim: Preview
) -> tuple[Report, dict[str, Float[Tensor, " units"]]]:
    """Copy the folder of the last of some rounds, and return report and scores of all of them as those of one run with `config`.

    Raises:
        VerificationError: if the folder is not what the plan of all rounds makes of the dense model.
    """
    shutil.copytree(places[-1], folder, dirs_exist_ok=True)
    plan, scores = composed(places)
    report = report_of_rounds(config, reports, plan, reached=aim.target.reached(plan.counts()))
    found = _masked_vs_sliced(config, folder, plan, places[-1], report.task)
    return replace(report, verification=replace(report.verification, masked_vs_sliced=found)), scores


def round_config(
    config: PruneConfig, turn: int, before: Sequence[Removed], *, places: Sequence[Path], aim: Preview
) -> RoundConfig:
    """Return the options of a round; `before` is what earlier ones removed, `aim` what the whole run is to reach."""
    due, rank = aim.target.ratio * (turn + 1) / config.rounds, max(1, int(config.rank * RANK_FACTOR**turn))
    options = next_options(config, turn, places, before, aim=aim, due=due) | {
        "rank": rank, "alpha": config.alpha * rank / config.rank, "lr": config.lr * LR_FACTOR**turn,
    }  # fmt: skip
    return RoundConfig(**options, turn=turn)


def next_options(
    config: PruneConfig, turn: int, places: Sequence[Path], before: Sequence[Removed], *, aim: Preview, due: float
) -> dict[str, Any]:
    """Return the options of a run that starts from the folder of the one before and has an equal share of the steps.

    Args:
        config: The options of the whole run.
        turn: Runs before this one.
        places: The folders of all runs.
        before: What earlier runs removed.
        aim: The target of this run, or of the last one, for the dense model.
        due: Fraction of the dense model's prunable parameters that is removed after this run.
    """
    kinds = config.kinds
    if before:
        due = max(0.0, 1 - before[0].prunable_dense * (1 - due) / before[-1].prunable_pruned)
        kinds = ",".join(dict.fromkeys(group.kind for group in aim.target.groups))
    return {f.name: getattr(config, f.name) for f in fields(PruneConfig)} | {
        "model": str(places[turn - 1]) if turn else config.model, "output": str(places[turn]), "overwrite": True,
        "rounds": 1, "sizes": None, "ratio": due, **dict.fromkeys(TARGETS), "kinds": kinds,
        "steps": None if config.steps is None else share(config.steps, turn, len(places)), "epochs": config.epochs / len(places),
    }  # fmt: skip


def share(total: int, turn: int, runs: int) -> int:
    """Return the part of a number of steps or tokens that one of several runs gets; the parts add up to it."""
    return total * (turn + 1) // runs - total * turn // runs


def run_round(
    config: RoundConfig, places: Sequence[Path], prune: Callable[[PruneConfig], Report], *, name: str
) -> None:
    """Do a run that is not finished yet; remove what a former attempt left of it and of later ones."""
    place = places[0]
    if config.resume and is_finished(config, place):
        logger.info("%s is finished", name)
        return
    logger.info("%s: ratio %.4f of the remaining prunable parameters, rank %d", name, config.ratio, config.rank)
    prune(config)
    first_alone(lambda: _forget(places[1:]))


def _forget(places: Sequence[Path]) -> None:
    for place in places:
        for left in (place, workspace_of(place)):
            shutil.rmtree(left, ignore_errors=True)


def composed(places: Sequence[Path]) -> tuple[Plan, dict[str, Float[Tensor, " units"]]]:
    """Return the combined plan of all rounds for the dense model, and the last score of each of its units."""
    plan, scores = Plan.read(places[0]), load_file(places[0] / "scores.safetensors")
    for place in places[1:]:
        for name, values in load_file(place / "scores.safetensors").items():
            scores[name][list(plan.kept[name])] = values
        plan = plan.then(Plan.read(place))
    return plan, scores


def _masked_vs_sliced(config: PruneConfig, folder: Path, plan: Plan, last: Path, job: str) -> float:
    """Compare the dense model, given the weights in `folder` and masked by the plan of the whole run, with that of the `last` round.

    The two are read from different files, so that weights of `folder` that are not those the round has verified are noticed.
    """
    device = choose_device(config.device)
    known = load_config(config.model, trust_remote_code=config.trust_remote_code)
    dtype = choose_dtype(config.dtype, device, known.dtype)
    task = tasks.get(job)
    verified, _ = load_with_head(str(last), task.head, device=device, dtype=dtype)
    probe = probe_of(verified)
    sliced = logits_of(verified, probe)
    del verified
    gc.collect()
    saved, _ = load_with_head(str(folder), task.head, device=device, dtype=dtype)
    decided = {name: getattr(saved.config, name) for name in HEAD_KEYS if hasattr(saved.config, name)}
    dtype = saved.dtype
    with tempfile.TemporaryDirectory(dir=folder.parent) as spare:
        stored = stored_tensors(saved, folder, Path(spare))
        del saved
        gc.collect()
        dense, _ = load_with_head(
            config.model, task.head, device=device, dtype=dtype, trust_remote_code=config.trust_remote_code, values=decided,
            new=task.new, seed=config.seed,
        )  # fmt: skip
        groups = as_planned([group for group in find_groups(dense.config) if group.name in plan.kept], plan.parts)
        masked = masked_logits(dense, stored, groups, plan, probe)
    return check_difference("masked and sliced model", difference(masked, sliced), dtype)
