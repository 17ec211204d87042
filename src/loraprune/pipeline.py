"""The main job: train and prune, merge, save, verify, judge. Everything it does is done elsewhere; it says in which order.

Plain LoRA fine-tuning is the same job with nothing to remove.
"""

from __future__ import annotations

import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.adapters import attach_lora, base_model, merge_lora
from loraprune.callback import LoRAPruneCallback
from loraprune.checkpoint import cast_weights_, round_weights_, save_model
from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.depth import numbered_as_before
from loraprune.distillation import choose_teacher, make_teacher
from loraprune.groups import Group
from loraprune.guard import StepGuard
from loraprune.html.page import write_page
from loraprune.job import Job, free, load_job
from loraprune.loading import load_with_head, resolve
from loraprune.measured import Measured
from loraprune.memory import peak_memory_bytes, reset_peak_memory
from loraprune.plan import Plan
from loraprune.pruner import Pruner
from loraprune.report import Quality, Report, Training, make_report, write_folder
from loraprune.resume.keeper import Checkpoint, Keeper
from loraprune.resume.run import check_same, digest_of_model, digest_of_rows, newest_checkpoint, options_of
from loraprune.resume.workspace import forget_checkpoints, new_folder
from loraprune.rounds import prune_in_rounds
from loraprune.showcase import Showcase
from loraprune.sparsity.sparsifier import Sparsifier
from loraprune.stored import stored_tensors
from loraprune.train import TrainingBar, train
from loraprune.verify import (
    TOLERANCE,
    UnitSums,
    Verification,
    check_difference,
    check_units,
    difference,
    logits_of,
    masked_logits,
    probe_of,
    unit_sums,
)
from loraprune.watching import Watch


def prune(config: PruneConfig) -> Report:
    """Prune a model while fine-tuning it with LoRA, and write a folder that `from_pretrained` loads.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    if config.rounds > 1:
        return prune_in_rounds(config, prune)
    return _run(config, LoRAPruneCallback(config.pruning()))


def finetune(config: FinetuneConfig) -> Report:
    """Fine-tune the dense model with LoRA, merge and save: the baseline of every pruned model.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    return _run(config, None)


def _run(config: PruneConfig | FinetuneConfig, callback: LoRAPruneCallback | None) -> Report:
    began = time.perf_counter()
    with new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume) as folder:
        checkpoint = newest_checkpoint(folder.parent, config) if config.resume else None
        job = load_job(config)
        dense = job.task.judge(job.model, job.data, config.batch)
        show = Showcase(job.data.held_out, job.data.processor, wanted=config.html)
        show.write("dense", job.model)
        adapted, training = _fit(job, callback, folder.parent, checkpoint)
        pruner = callback.pruner if callback else None
        groups = pruner.groups if pruner else job.groups
        plan = pruner.plan if pruner else Plan.full(groups)

        merging = time.perf_counter()
        probe = probe_of(job.model)
        logits = logits_of(adapted, probe)
        sums = unit_sums(adapted, pruner.present if pruner else groups, changed=job.config.pruning().changed)
        counts = {name: len(kept) for name, kept in plan.kept.items()}
        job.model = merge_lora(adapted)
        training.seconds += time.perf_counter() - merging
        del adapted
        if pruner:
            pruner.release()
        check_difference("adapted and merged model", difference(logits, logits_of(job.model, probe)), job.model.dtype)
        round_weights_(job.model, job.stored)
        merged, dtype = logits_of(job.model, probe), job.model.dtype
        cast_weights_(job.model, job.stored)
        save_model(
            job.model, folder, config=job.dense_config, groups=groups, counts=counts, dtype=job.stored,
            max_shard_size=config.max_shard_size,
        )  # fmt: skip
        free(job)
        job.data.processor.save_pretrained(folder)
        sparse = pruner if isinstance(pruner, Sparsifier) else None
        verification = _verify_saved(job, plan, folder, Promise(groups, sums, merged, dtype), sparse=sparse, show=show)
        pruned = job.task.judge(job.model, job.data, config.batch)
        show.time("pruned", job.model, folder)
        show.write("pruned", job.model)
        report = make_report(
            config, quality=Quality(job.task, dense, pruned, show.to_json()), training=training, plan=plan, pruner=pruner,
            verification=verification, parameters=(job.dense_parameters, job.model.num_parameters()), began=began,
        )  # fmt: skip
        # Scores of single weights would be as large as the model.
        scored = pruner if isinstance(pruner, Pruner) else None
        write_folder(
            folder, report, config, scores=scored.scores.values if scored else None, history=scored.history if scored else None
        )  # fmt: skip
        if config.html:
            write_page(folder)
    return report


def _fit(
    job: Job, callback: LoRAPruneCallback | None, workspace: Path, checkpoint: Checkpoint | None
) -> tuple[PeftModel, Training]:
    """Attach LoRA and train, from a checkpoint on if there is one; the time counts scoring and slicing, not loading and judging."""
    pruning = job.config.pruning()
    reset_peak_memory(job.device)
    started = time.perf_counter()
    rows, collator = job.data.training, job.data.collator
    teaching = choose_teacher(job.config.teacher if isinstance(job.config, PruneConfig) else "none", job.model)
    run = options_of(job.config) | {
        "model": digest_of_model(job.model), "data": digest_of_rows(rows), "teacher": teaching
    }  # fmt: skip
    if checkpoint:
        check_same(checkpoint, run)
        run |= {"teacher": checkpoint.run["teacher"]}
    else:
        forget_checkpoints(workspace)
    teacher = make_teacher(
        run["teacher"], job.model, rows, collator, batch=job.config.batch, cache=workspace / "teacher"
    )
    adapted = attach_lora(
        job.model, job.groups, rank=pruning.rank, alpha=pruning.alpha, dropout=pruning.dropout, seed=pruning.seed,
        whole=job.new,
    )  # fmt: skip
    bar = TrainingBar((lambda: callback.pruner.ratio() if callback.pruner else 0.0) if callback else None)
    guard = callback.guard if callback else StepGuard()
    watch = _watch(job, callback)
    parts = [callback or guard, watch, bar]
    keeper = Keeper(workspace, run, every=job.config.save, parts=parts, guard=guard)
    if checkpoint:
        if callback:
            callback.prepare(adapted)
        keeper.restore(checkpoint, adapted)
    steps = train(
        adapted,
        job.data,
        config=job.config,
        task=job.task,
        callbacks=parts,
        device=job.device,
        keeper=keeper,
        teacher=teacher,
    )
    training = Training(
        steps=steps, seconds=keeper.earlier + time.perf_counter() - started - watch.seconds,
        peak_memory_bytes=peak_memory_bytes(job.device), curve=bar.curve, removals=callback.history if callback else [],
        skipped=guard.skipped, protocol=dict(rows.protocol), new=job.new, evaluations=watch.history,
        kept_step=watch.kept_step,
    )  # fmt: skip
    return adapted, training


def _watch(job: Job, callback: LoRAPruneCallback | None) -> Watch:
    """Return what looks at the held-out data while the model trains."""

    def judge(model: nn.Module) -> Measured:
        base = base_model(model)
        assert isinstance(base, PreTrainedModel)
        return job.task.judge(base, job.data, job.config.batch)

    def ratio() -> tuple[float, bool]:
        return (callback.pruner.ratio(), callback.pruner.is_done) if callback and callback.pruner else (0.0, True)

    return Watch(judge, every=job.config.eval_every, patience=job.config.patience, ratio=ratio)


@dataclass(frozen=True, slots=True)
class Promise:
    """What the model was before it was saved."""

    groups: tuple[Group, ...]
    sums: UnitSums
    merged: Tensor
    """logits of the probe"""
    dtype: torch.dtype
    """precision of computation"""


def _verify_saved(
    job: Job, plan: Plan, folder: Path, promise: Promise, *, sparse: Sparsifier | None, show: Showcase
) -> Verification:
    """Compare what the model was with the masked dense one and with what is loaded from the folder, which replaces it.

    No two models are in memory at any time: the dense one is filled from the files, tensor by tensor.
    """
    dtype, head = promise.dtype, job.task.head
    saved, _ = load_with_head(str(folder), head, device=job.device, dtype=dtype)
    probe = probe_of(saved)
    reloaded = logits_of(saved, probe)
    with tempfile.TemporaryDirectory(dir=folder.parent) as spare:
        stored = stored_tensors(saved, folder, Path(spare))
        del saved
        gc.collect()
        dense, _ = load_with_head(
            job.config.model, head, device=job.device, dtype=dtype, trust_remote_code=job.config.trust_remote_code,
            values=job.data.values, new=job.task.new, seed=job.config.seed,
        )  # fmt: skip
        if sparse:
            sparse.check_saved(folder, dense)
        check_units(unit_sums(dense, promise.groups, plan=plan, changed=job.config.pruning().changed), promise.sums)
        counts = {name: len(kept) for name, kept in plan.kept.items()}
        before = numbered_as_before({name: name for name in stored}, counts)
        masked = masked_logits(dense, stored.named(before), promise.groups, plan, probe)
    show.time("dense", dense, Path(resolve(job.config.model)))
    del dense
    gc.collect()
    job.model, _ = load_with_head(str(folder), head, device=job.device, dtype=dtype)
    return Verification(
        masked_vs_sliced=check_difference("masked and sliced model", difference(masked, promise.merged), dtype),
        sliced_vs_reloaded=check_difference("sliced and reloaded model", difference(promise.merged, reloaded), dtype),
        tolerance=TOLERANCE[dtype],
        saved_as=job.model.config.model_type,
    )
