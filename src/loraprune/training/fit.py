"""The training of a job: LoRA attached, a checkpoint or a teacher taken up where there is one, and one whole model in the end.

Knows nothing about merging, saving or judging a result.
"""

from __future__ import annotations

import time
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from loraprune.config.training import PruneConfig
from loraprune.evaluation.measurement import Measured
from loraprune.models.adapters import attach_lora, base_model
from loraprune.models.quantised import Quantisation
from loraprune.pruning.pruner import Pruner
from loraprune.runtime import launch
from loraprune.runtime.memory import peak_memory_bytes, reset_peak_memory
from loraprune.runtime.processes import count, first_alone, from_first, in_turn
from loraprune.runtime.sharding import callable_inside, is_sharded, whole_tensor
from loraprune.runtime.workspace import BLOCKS, forget_checkpoints
from loraprune.training.callback import LoRAPruneCallback
from loraprune.training.guard import StepGuard
from loraprune.training.progress import TrainingBar
from loraprune.training.record import Training
from loraprune.training.resume.keeper import Checkpoint, Keeper
from loraprune.training.resume.run import check_same, digest_of_model, digest_of_rows, options_of
from loraprune.training.setup import Job, free
from loraprune.training.teachers import choose_teacher, make_teacher
from loraprune.training.trainer import train
from loraprune.training.watch import Watch, changing


def fit(job: Job, callback: LoRAPruneCallback | None, workspace: Path, checkpoint: Checkpoint | None) -> Training:
    """Attach LoRA and train, which gives `job.adapted`; from a checkpoint on if there is one.

    The time counts scoring and slicing, not loading and judging.
    """
    reset_peak_memory(job.device)
    started = time.perf_counter()
    rows, collator = job.data.training, job.data.collator
    asked = job.config.teacher if isinstance(job.config, PruneConfig) else "none"
    teaching = choose_teacher(asked, job.model, quantisable=job.quantisable)
    run = options_of(job.config) | {
        "model": digest_of_model(job.model), "data": digest_of_rows(rows), "teacher": from_first(teaching),
        "processes": count(), "sharded": launch.is_sharded(),
    }  # fmt: skip
    if checkpoint:
        check_same(checkpoint, run)
        run |= {"teacher": checkpoint.run["teacher"]}
    else:
        first_alone(lambda: forget_checkpoints(workspace, but=(BLOCKS,) if job.config.resume else ()))
    with in_turn():
        teacher = make_teacher(
            run["teacher"], job.model, rows, collator, batch=job.config.batch, cache=workspace / "teacher",
            small=lambda: job.load_dense(job.dtype, quantisation=Quantisation("8bit", job.quantisable)),
        )  # fmt: skip
    adapted = _attach(job)
    trainable = adapted.num_parameters(only_trainable=True)
    if callback:
        callback.folder = workspace / BLOCKS
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
    job.adapted = _whole(job, adapted, callback) if is_sharded(adapted) else adapted
    return Training(
        steps=steps, seconds=keeper.earlier + time.perf_counter() - started - watch.seconds,
        peak_memory_bytes=peak_memory_bytes(job.device), curve=bar.curve, removals=callback.history if callback else [],
        skipped=guard.skipped, protocol=dict(rows.protocol), trainable=trainable, new=job.new,
        evaluations=watch.history, kept_step=watch.kept_step,
    )  # fmt: skip


def _attach(job: Job) -> PeftModel:
    pruning = job.config.pruning()
    return attach_lora(
        job.model, job.groups, rank=pruning.rank, alpha=pruning.alpha, dropout=pruning.dropout, seed=pruning.seed,
        whole=job.new,
    )  # fmt: skip


def _whole(job: Job, parts: PeftModel, callback: LoRAPruneCallback | None) -> PeftModel:
    """Return a trained model that lies in parts whole, and cut: frozen weights are those of the checkpoint."""
    trained = {name: whole_tensor(tensor.detach()) for name, tensor in changing(parts)}
    dtype = job.model.dtype
    free(job)
    job.model = job.load_dense(dtype, quantisation=job.quantisation)
    adapted = _attach(job)
    for name, tensor in changing(adapted):
        tensor.data.copy_(trained[name])
    if callback and isinstance(callback.pruner, Pruner):
        callback.pruner.cut(adapted)
    return adapted


def _watch(job: Job, callback: LoRAPruneCallback | None) -> Watch:
    """Return what looks at the held-out data while the model trains."""

    def judge(model: nn.Module) -> Measured:
        base = base_model(model)
        assert isinstance(base, PreTrainedModel)
        with callable_inside(model):
            return from_first(job.task.judge(base, job.data, job.config.batch))

    def ratio() -> tuple[float, bool]:
        return (callback.pruner.ratio(), callback.pruner.is_done) if callback and callback.pruner else (0.0, True)

    return Watch(judge, every=job.config.eval_every, patience=job.config.patience, ratio=ratio)
