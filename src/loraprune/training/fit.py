"""Train the model of a run: attach LoRA, resume a checkpoint, make a teacher, and end with a model that is not sharded.

Knows nothing about merging, saving or evaluating a result.
"""

from __future__ import annotations

import time
from pathlib import Path

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from loraprune.config.training import PruneConfig, as_dict
from loraprune.evaluation.measurement import Measured
from loraprune.models.adapters import attach_lora, base_model
from loraprune.models.quantised import Quantisation
from loraprune.pruning.verify import check_merging
from loraprune.runtime import launch
from loraprune.runtime.memory import peak_memory_bytes, reset_peak_memory
from loraprune.runtime.processes import first_alone, from_first
from loraprune.runtime.run_file import write_run
from loraprune.runtime.sharding import callable_inside, gather_tensor, is_sharded
from loraprune.runtime.workspace import BLOCKS, VOCABULARY, forget_checkpoints
from loraprune.training.callback import LoRAPruneCallback
from loraprune.training.guard import StepGuard
from loraprune.training.record import Training
from loraprune.training.resume.keeper import Checkpoint, Keeper
from loraprune.training.resume.run import check_same, identity_of
from loraprune.training.setup import RunModel, RunSetup
from loraprune.training.teachers import Teacher, choose_teacher, make_teacher
from loraprune.training.trainer import train
from loraprune.training.watch import TrainingBar, Watch, changing


def fit(
    setup: RunSetup,
    run: RunModel,
    callback: LoRAPruneCallback | None,
    workspace: Path,
    checkpoint: Checkpoint | None,
) -> Training:
    """Attach LoRA and train, which sets `run.adapted` and `run.pruner`; continue from a checkpoint if there is one.

    The time counts scoring and slicing, not loading and evaluation.
    """
    reset_peak_memory(setup.device)
    started = time.perf_counter()
    asked = setup.config.teacher if isinstance(setup.config, PruneConfig) else "none"
    fitting = choose_teacher(asked, run.model, quantisable=setup.quantisable)
    kind = checkpoint.run["teacher"] if checkpoint else from_first(fitting)
    identity = identity_of(setup.config, run.model, setup.data.training, teacher=kind)
    if checkpoint:
        check_same(checkpoint, identity)
    else:
        first_alone(lambda: _begin(setup, workspace))
    teacher = _teacher(setup, run, kind, workspace)
    adapted = _attach(setup, run)
    if not is_sharded(adapted):
        check_merging(adapted, setup.groups)
    trainable = adapted.num_parameters(only_trainable=True)
    guard = callback.guard if callback else StepGuard()
    watch = _watch(setup, callback)
    bar = TrainingBar(
        (lambda: callback.pruner.ratio() if callback.pruner else 0.0) if callback else None,
        trains=setup.config.steps != 0,
    )
    parts = [callback or guard, watch, bar]
    every = 0 if setup.config.is_streamed else setup.config.save  # a checkpoint would hold layers that are on disk
    keeper = Keeper(workspace, identity, every=every, parts=parts, guard=guard)
    if callback and (checkpoint or launch.is_sharded()):
        callback.prepare(adapted)
    if checkpoint:
        keeper.restore(checkpoint, adapted)
    steps = train(
        adapted, setup.data, config=setup.config, task=setup.task, callbacks=parts, keeper=keeper, teacher=teacher,
    )  # fmt: skip
    run.pruner = callback.pruner if callback else None
    run.adapted = _gathered(setup, run, adapted) if is_sharded(adapted) else adapted
    return Training(
        steps=steps, seconds=keeper.earlier + time.perf_counter() - started - watch.seconds,
        peak_memory_bytes=peak_memory_bytes(setup.device), curve=bar.curve, removals=callback.history if callback else [],
        skipped=guard.skipped, protocol=dict(setup.data.training.protocol), trainable=trainable, new=run.dense.new,
        evaluations=watch.history, kept_step=watch.kept_step,
    )  # fmt: skip


def _begin(setup: RunSetup, workspace: Path) -> None:
    """Delete the files of a former run in the workspace, and store the options of this one."""
    forget_checkpoints(workspace, but=(VOCABULARY, *((BLOCKS,) if setup.config.resume else ())))
    write_run(workspace, setup.config.job, as_dict(setup.config))


def _teacher(setup: RunSetup, run: RunModel, kind: str, workspace: Path) -> Teacher | None:
    """Return the dense model as a teacher."""

    def small() -> PreTrainedModel:
        return setup.load_dense(run.dense.dtype, quantisation=Quantisation("8bit", setup.quantisable))[0]

    return make_teacher(
        kind, run.model, setup.data.training, setup.data.collator, batch=setup.config.batch, cache=workspace / "teacher",
        small=small,
    )  # fmt: skip


def _attach(setup: RunSetup, run: RunModel) -> PeftModel:
    pruning = setup.config.pruning()
    return attach_lora(
        run.model, setup.groups, rank=pruning.rank, alpha=pruning.alpha, dropout=pruning.dropout, seed=pruning.seed,
        whole=run.dense.new, kind=pruning.adapter,
    )  # fmt: skip


def _gathered(setup: RunSetup, run: RunModel, sharded: PeftModel) -> PeftModel:
    """Return a sharded model that was trained as one that is not, and cut.

    Only what training changed is gathered: LoRA, new modules and buffers. The frozen weights are read from the checkpoint again, which
    spares their traffic, and cut at once: before LoRA is copied if it was cut too, else afterwards. 4-bit weights are the same as after
    several cuts, which quantise the original ones again each time.
    """
    trained = {name: gather_tensor(tensor.detach()) for name, tensor in changing(sharded)}
    is_cut = run.pruner is not None and run.pruner.config.shrink
    run.free()
    run.model, _ = setup.load_dense(run.dense.dtype, quantisation=setup.quantisation)
    adapted = _attach(setup, run)
    if run.pruner and is_cut:
        run.pruner.cut(adapted)
    for name, tensor in changing(adapted):
        tensor.data.copy_(trained[name])
    if run.pruner and not is_cut:
        run.pruner.cut(adapted)
    return adapted


def _watch(setup: RunSetup, callback: LoRAPruneCallback | None) -> Watch:
    """Return the callback that evaluates the model on held-out data during training."""

    def evaluate(model: nn.Module) -> Measured:
        base = base_model(model)
        assert isinstance(base, PreTrainedModel)
        with callable_inside(model):
            return from_first(setup.task.evaluate(base, setup.data, setup.config.batch))

    def ratio() -> tuple[float, bool]:
        return (callback.pruner.ratio(), callback.pruner.is_done) if callback and callback.pruner else (0.0, True)

    return Watch(evaluate, every=setup.config.eval_every, patience=setup.config.patience, ratio=ratio)
