"""The main job: train and prune, merge, save, verify, judge. Everything it does is done elsewhere; it says in which order.

Plain LoRA fine-tuning is the same job with nothing to remove.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from loraprune.adapters import attach_lora, merge_lora
from loraprune.callback import LoRAPruneCallback
from loraprune.checkpoint import new_folder, round_weights_, save_model
from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.criteria import criteria
from loraprune.data import Collator, Data, check_vocabulary, draw_rows, load_data
from loraprune.distillation import make_teacher
from loraprune.errors import Findings
from loraprune.evaluate import perplexity
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.inputs import NEEDS, check_model, check_text
from loraprune.loading import choose_device, choose_dtype, embedding_rows, load_config, load_model, load_tokenizer
from loraprune.memory import peak_memory_bytes, reset_peak_memory
from loraprune.plan import Plan
from loraprune.pruner import Pruner, goal_counts, make_space
from loraprune.report import Quality, Report, Training, make_report, write_folder
from loraprune.shell import empty_model
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


def check_job(
    config: PruneConfig | FinetuneConfig,
) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase, Data]:
    """Check everything that a run is given, and return what of it is loaded without the weights.

    Raises:
        LoraPruneError: for everything that is wrong, at once.
    """
    pruning, trust, found = config.pruning(), config.trust_remote_code, Findings()
    with found.check():
        criteria.get(pruning.criterion)
    with found.check():
        choose_device(config.device)
    check_model(config.model, NEEDS["prune"], found, trust_remote_code=trust)
    if found.errors:
        for option, text in (("data", config.data), ("eval", config.eval)):
            if text:
                check_text(option, text, found)
        found.raise_all()
    original = load_config(config.model, trust_remote_code=trust)
    tokenizer = load_tokenizer(config.model, trust_remote_code=trust)
    with found.check():
        shell, groups = empty_model(original), find_groups(original)
        check_groups(shell, groups)
        check_vocabulary(tokenizer, embedding_rows(shell))
        if pruning.sparsity:
            check_sparsity(shell, groups, pruning)
        elif isinstance(config, PruneConfig):
            goal_counts(make_space(shell, groups, pruning), pruning, model_parameters=shell.num_parameters())
    with found.check():
        length = min(config.length, original.max_position_embeddings)
        data = load_data(config.data, tokenizer, length=length, held_out=config.eval)
        data = replace(data, train=draw_rows(data.train, config.rows, seed=config.seed))
    found.raise_all()
    return original, tokenizer, data


def load_job(config: PruneConfig | FinetuneConfig) -> Job:
    """Check and load model, tokenizer and data."""
    trust = config.trust_remote_code
    original, tokenizer, data = check_job(config)
    device = choose_device(config.device)
    model = load_model(config.model, device=device, dtype=choose_dtype(config.dtype, device), trust_remote_code=trust)
    groups = find_groups(model.config)
    check_groups(model, groups)
    dense_config = copy.deepcopy(model.config)
    stored = original.dtype if config.dtype == "auto" and isinstance(original.dtype, torch.dtype) else model.dtype
    return Job(
        config,
        device,
        choose_dtype(config.dtype, device),
        stored,
        model,
        tokenizer,
        data,
        groups,
        dense_config,
        model.num_parameters(),
    )


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
    with new_folder(Path(config.output), overwrite=config.overwrite) as folder:
        job = load_job(config)
        dense = perplexity(job.model, job.data.held_out, batch=config.batch)
        adapted, training = _fit(job, callback)
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


def _fit(job: Job, callback: LoRAPruneCallback | None) -> tuple[PeftModel, Training]:
    """Attach LoRA and train; the time counts scoring and slicing, not loading and judging."""
    pruning = job.config.pruning()
    reset_peak_memory(job.device)
    started = time.perf_counter()
    pad = job.tokenizer.pad_token_id
    assert isinstance(pad, int)
    collator, teaching = Collator(pad), job.config.teacher if isinstance(job.config, PruneConfig) else "none"
    teacher = make_teacher(teaching, job.model, job.data.train, collator, batch=job.config.batch)
    adapted = attach_lora(
        job.model, job.groups, rank=pruning.rank, alpha=pruning.alpha, dropout=pruning.dropout, seed=pruning.seed
    )
    bar = TrainingBar((lambda: callback.pruner.ratio() if callback.pruner else 0.0) if callback else None)
    callbacks: Sequence[TrainerCallback] = [callback, bar] if callback else [bar]
    steps = train(
        adapted, job.data.train, collator, config=job.config, callbacks=callbacks, device=job.device, teacher=teacher
    )
    training = Training(
        steps=steps, seconds=time.perf_counter() - started, peak_memory_bytes=peak_memory_bytes(job.device),
        curve=bar.curve, removals=callback.history if callback else [], protocol=dict(job.data.train.protocol),
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
