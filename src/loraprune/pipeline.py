"""One run from its options to the output folder, in the order of Algorithm 1 of the paper (arXiv 2305.18403).

Score, average, remove and tune repeat while the Trainer trains: the Trainer calls `LoRAPruneCallback` at every step, which calls a
`PruningMethod`. Merging, saving and verifying follow once. This module only defines the order.
Plain LoRA fine-tuning is the same run with nothing to remove.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.evaluation.per_byte import with_bits_per_byte
from loraprune.evaluation.samples import Showcase
from loraprune.merge import checked, merge, save, verify
from loraprune.models.opening import resolve
from loraprune.reporting.html.page import write_page
from loraprune.reporting.make import Quality, make_report
from loraprune.reporting.report import Report, Shown
from loraprune.reporting.write import write_folder
from loraprune.rounds import prune_in_rounds
from loraprune.runtime import launch
from loraprune.runtime.processes import first_alone, joined, together
from loraprune.runtime.workspace import BLOCKS, new_folder
from loraprune.search import prune_within
from loraprune.sizes import prune_to_sizes
from loraprune.training.callback import LoRAPruneCallback
from loraprune.training.fit import fit
from loraprune.training.record import Training
from loraprune.training.resume.run import newest_checkpoint
from loraprune.training.setup import RunModel, RunSetup, check_run, load_run
from loraprune.training.vocabulary import cut_vocabulary

logger = logging.getLogger(__name__)


def prune(config: PruneConfig) -> Report:
    """Prune a model while fine-tuning it with LoRA, and write a folder that `from_pretrained` loads.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    if config.max_drop is not None:
        return prune_within(config, run)
    if config.sizes is not None:
        return prune_to_sizes(config, run)
    return prune_in_rounds(config, run) if config.rounds > 1 else run(config)


def finetune(config: FinetuneConfig) -> Report:
    """Fine-tune the dense model with LoRA, merge and save: the baseline of every pruned model.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    return run(config)


def run(config: PruneConfig | FinetuneConfig) -> Report:
    """Do one run."""
    began = time.perf_counter()
    with (
        joined(config.job, config.device),
        new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume, costly=True) as folder,
    ):
        workspace = folder.parent
        with together():
            checkpoint = newest_checkpoint(workspace, config) if config.resume else None
            setup = check_run(config)
            held = load_run(setup)
            logger.info(
                "%s: %s parameters; evaluated first on %d held-out rows, then %s %d rows",
                config.model, f"{held.dense.parameters:,}", len(setup.data.held_out),
                "trained with" if config.steps != 0 else "scored on", len(setup.data.training),
            )  # fmt: skip
            task = with_bits_per_byte(setup.task, setup.data) if setup.tokens else setup.task
            wanted = (
                config.html and launch.is_first() and not config.is_streamed
            )  # every new token would read the model
            show = Showcase(task, setup.data, config.batch, wanted=wanted)
            show.evaluate("dense", held.model)
        show.write("dense", held.model)
        if setup.tokens:
            setup, held = _with_fewer_tokens(setup, held, show, workspace)
        callback = None
        if setup.goal:
            callback = LoRAPruneCallback(
                config.pruning(), guarded=True, goal=setup.goal, folder=workspace / BLOCKS, clip=config.clip
            )
        # At every step the callback scores and averages before the update, and removes after it where the schedule says so.
        training = fit(setup, held, callback, workspace, checkpoint)
        return first_alone(lambda: _finish(setup, held, training, show, folder, began))


def _with_fewer_tokens(setup: RunSetup, held: RunModel, show: Showcase, workspace: Path) -> tuple[RunSetup, RunModel]:
    """Replace the dense model by the one with fewer tokens, which the run then trains; figures of the dense model stay the whole one's."""
    show.time("dense", held.model, Path(resolve(setup.place)))
    parameters = held.dense.parameters
    held.free()
    setup, found = cut_vocabulary(setup, workspace)
    with together():
        held = load_run(setup)
    held.dense = replace(held.dense, parameters=parameters, vocabulary=found.to_json())
    show.follow(setup.task, setup.data)
    return setup, held


def _finish(setup: RunSetup, held: RunModel, training: Training, show: Showcase, folder: Path, began: float) -> Report:
    """Merge, save, verify, evaluate and report."""
    config, pruner = setup.config, held.pruner
    merged = merge(setup, held)
    training.seconds += merged.seconds
    save(setup, held, merged, folder)
    with checked(merged.checks):
        verify(setup, held, merged, folder, show)
        show.evaluate("pruned", held.model)
        show.time("pruned", held.model, folder)
        show.write("pruned", held.model)
        removed, scores, history = (
            (pruner.removed(), pruner.unit_scores(), pruner.noted_scores()) if pruner else (None, None, {})
        )
        report = make_report(
            config, training=training,
            quality=Quality(setup.task, show.measured["dense"], show.measured["pruned"], Shown(**show.to_json())),
            removed=removed,
            verification=merged.checks.verification(saved_as=held.model.config.model_type, dense_noise=held.dense.noise),
            parameters=(held.dense.parameters, held.model.num_parameters()), plan=merged.plan,
            seconds=time.perf_counter() - began,
        )  # fmt: skip
        report = replace(report, vocabulary=held.dense.vocabulary)
        write_folder(folder, report, config, scores=scores, history=history)
        if config.html:
            write_page(folder)
    return report
