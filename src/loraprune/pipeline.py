"""The main job: train and prune, merge, save, verify, judge. Everything it does is done elsewhere; it says in which order.

Plain LoRA fine-tuning is the same job with nothing to remove.
"""

from __future__ import annotations

import copy
import gc
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from loraprune.adapters import attach_lora, merge_lora
from loraprune.callback import LoRAPruneCallback
from loraprune.checkpoint import round_weights_, save_model
from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.criteria import criteria
from loraprune.data import Collator, Data, check_vocabulary, draw_rows, load_data
from loraprune.distillation import choose_teacher, make_teacher
from loraprune.evaluate import perplexity
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.guard import StepGuard
from loraprune.loading import choose_device, choose_dtype, embedding_rows, load_config, load_model, load_tokenizer
from loraprune.memory import peak_memory_bytes, reset_peak_memory
from loraprune.plan import Plan
from loraprune.pruner import Pruner, goal_counts, make_space
from loraprune.report import Quality, Report, Training, make_report, write_folder
from loraprune.resume.keeper import Checkpoint, Keeper
from loraprune.resume.run import check_same, digest_of_model, digest_of_rows, newest_checkpoint, options_of
from loraprune.resume.workspace import forget_checkpoints, new_folder
from loraprune.sparsity.sparsifier import Sparsifier, check_sparsity
from loraprune.surgery import check_groups
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
    probe_batch,
    unit_sums,
    weights_of,
)


@dataclass(slots=True)
class Job:
    """Everything a run needs, loaded and checked."""

    config: PruneConfig | FinetuneConfig
    device: torch.device
    dtype: torch.dtype | None
    """precision to compute in; None for the checkpoint's"""
    stored: torch.dtype
    """precision to save in: the checkpoint's, unless one is asked for"""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: Data
    groups: tuple[Group, ...]
    dense_config: PreTrainedConfig
    dense_parameters: int


def load_job(config: PruneConfig | FinetuneConfig) -> Job:
    """Load model, tokenizer and data, and find out now whatever could fail after the training."""
    pruning = config.pruning()
    criteria.get(pruning.criterion)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    original = load_config(config.model, trust_remote_code=config.trust_remote_code)
    find_groups(original)
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    model = load_model(config.model, device=device, dtype=dtype, trust_remote_code=config.trust_remote_code)
    groups = find_groups(model.config)
    check_groups(model, groups)
    if pruning.sparsity:
        check_sparsity(model, groups, pruning)
    elif isinstance(config, PruneConfig):
        goal_counts(make_space(model, groups, pruning), pruning, model_parameters=model.num_parameters())
    check_vocabulary(tokenizer, embedding_rows(model))
    length = min(config.length, model.config.max_position_embeddings)
    data = load_data(config.data, tokenizer, length=length, held_out=config.eval)
    data = replace(data, train=draw_rows(data.train, config.rows, seed=config.seed))
    dense_config = copy.deepcopy(model.config)
    stored = original.dtype if config.dtype == "auto" and isinstance(original.dtype, torch.dtype) else model.dtype
    return Job(config, device, dtype, stored, model, tokenizer, data, groups, dense_config, model.num_parameters())


def prune(config: PruneConfig) -> Report:
    """Prune a model while fine-tuning it with LoRA, and write a folder that `from_pretrained` loads.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
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
        dense = perplexity(job.model, job.data.held_out, batch=config.batch)
        adapted, training = _fit(job, callback, folder.parent, checkpoint)
        pruner = callback.pruner if callback else None
        plan = pruner.plan if pruner else Plan.full(job.groups)

        merging = time.perf_counter()
        probe = probe_batch(job.model.config.vocab_size)
        logits = logits_of(adapted, probe)
        sums = unit_sums(adapted, pruner.present if pruner else job.groups, refitted=job.config.pruning().compensate)
        counts = {name: len(kept) for name, kept in plan.kept.items()}
        job.model = merge_lora(adapted)
        training.seconds += time.perf_counter() - merging
        del adapted
        if pruner:
            pruner.release()
        check_difference("adapted and merged model", difference(logits, logits_of(job.model, probe)), job.model.dtype)
        round_weights_(job.model, job.stored)
        save_model(job.model, folder, config=job.dense_config, groups=job.groups, counts=counts, dtype=job.stored)
        job.tokenizer.save_pretrained(folder)
        verification = _verify_saved(job, plan, folder, sums, sparse=pruner if isinstance(pruner, Sparsifier) else None)
        pruned = perplexity(job.model, job.data.held_out, batch=config.batch)
        report = make_report(
            config, quality=Quality(dense, pruned), training=training, plan=plan, pruner=pruner, verification=verification,
            parameters=(job.dense_parameters, job.model.num_parameters()), began=began,
        )  # fmt: skip
        # Scores of single weights would be as large as the model.
        write_folder(folder, report, config, scores=pruner.scores.values if isinstance(pruner, Pruner) else None)
    return report


def _fit(
    job: Job, callback: LoRAPruneCallback | None, workspace: Path, checkpoint: Checkpoint | None
) -> tuple[PeftModel, Training]:
    """Attach LoRA and train, from a checkpoint on if there is one; the time counts scoring and slicing, not loading and judging."""
    pruning = job.config.pruning()
    reset_peak_memory(job.device)
    started = time.perf_counter()
    pad = job.tokenizer.pad_token_id
    assert isinstance(pad, int)
    collator = Collator(pad)
    teaching = choose_teacher(job.config.teacher if isinstance(job.config, PruneConfig) else "none", job.model)
    run = options_of(job.config) | {
        "model": digest_of_model(job.model), "data": digest_of_rows(job.data.train), "teacher": teaching
    }  # fmt: skip
    if checkpoint:
        check_same(checkpoint, run)
        run |= {"teacher": checkpoint.run["teacher"]}
    else:
        forget_checkpoints(workspace)
    teacher = make_teacher(
        run["teacher"], job.model, job.data.train, collator, batch=job.config.batch, cache=workspace / "teacher"
    )
    adapted = attach_lora(
        job.model, job.groups, rank=pruning.rank, alpha=pruning.alpha, dropout=pruning.dropout, seed=pruning.seed
    )
    bar = TrainingBar((lambda: callback.pruner.ratio() if callback.pruner else 0.0) if callback else None)
    guard = callback.guard if callback else StepGuard()
    parts = [callback or guard, bar]
    keeper = Keeper(workspace, run, every=job.config.save, parts=parts, guard=guard)
    if checkpoint:
        if callback:
            callback.prepare(adapted)
        keeper.restore(checkpoint, adapted)
    steps = train(
        adapted, job.data.train, collator, config=job.config, callbacks=parts, device=job.device, keeper=keeper,
        teacher=teacher,
    )  # fmt: skip
    training = Training(
        steps=steps, seconds=keeper.earlier + time.perf_counter() - started, peak_memory_bytes=peak_memory_bytes(job.device),
        curve=bar.curve, removals=callback.history if callback else [], skipped=guard.skipped, protocol=dict(job.data.train.protocol),
    )  # fmt: skip
    return adapted, training


def _verify_saved(job: Job, plan: Plan, folder: Path, sums: UnitSums, *, sparse: Sparsifier | None) -> Verification:
    """Compare the model with the masked dense one and with what is loaded from the folder, which replaces it.

    No two models are in memory at any time.
    """
    dtype = job.model.dtype
    probe = probe_batch(job.model.config.vocab_size)
    merged = logits_of(job.model, probe)
    _free(job)
    dense = load_model(job.config.model, device=job.device, dtype=dtype, trust_remote_code=job.config.trust_remote_code)
    if sparse:
        sparse.check_saved(folder, dense)
    check_units(unit_sums(dense, job.groups, refitted=job.config.pruning().compensate), sums, plan)
    masked = masked_logits(dense, weights_of(folder), job.groups, plan, probe)
    del dense
    gc.collect()
    job.model = load_model(str(folder), device=job.device, dtype=dtype)
    reloaded = logits_of(job.model, probe)
    return Verification(
        masked_vs_sliced=check_difference("masked and sliced model", difference(masked, merged), dtype),
        sliced_vs_reloaded=check_difference("sliced and reloaded model", difference(merged, reloaded), dtype),
        tolerance=TOLERANCE[dtype],
        saved_as=job.model.config.model_type,
    )


def _free(job: Job) -> None:
    """Let go of the model in memory."""
    del job.model
    gc.collect()
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
