"""Fine-tuning with transformers' Trainer: its arguments and its callbacks.

Knows nothing about pruning: a pruning run differs by one callback.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.evaluation.tasks import Prepared, Task
from loraprune.models.adapters import base_layer
from loraprune.models.compat import enable_checkpointing
from loraprune.models.quantised import quantised_layers
from loraprune.runtime import launch
from loraprune.runtime.device import tf32_products
from loraprune.runtime.interrupts import kept
from loraprune.scoring.criteria import criteria
from loraprune.training.distillation import DistillingTrainer, NumberedCollator, NumberedRows
from loraprune.training.guarded_trainer import GuardedTrainer
from loraprune.training.resume.keeper import Keeper
from loraprune.training.teachers import Teacher
from loraprune.training.watch import Watch

OPTIMISERS = {"adamw-8bit": "adamw_8bit", "paged": "paged_adamw_32bit", "paged-8bit": "paged_adamw_8bit"}
"""`--optimizer` -> the Trainer's name for it"""
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""variable with the folder for transformers' TensorBoard callback"""
LOSSES_AT_LEAST = 50
"""a run logs its loss at least this often, if it has enough steps"""

ROWS_WITHOUT_TRAINING = 128
"""rows that score units in a run without training, if no other number is asked for"""


def optimiser_steps(config: PruneConfig | FinetuneConfig, rows: int) -> int:
    """Return the optimiser steps of a run over `rows` rows; of one without training, the steps that only score."""
    together = config.batch * config.accumulate * launch.count()
    if config.steps == 0:
        rows = min(rows, config.rows or ROWS_WITHOUT_TRAINING)
        return max(1, math.ceil(rows / together))
    if config.steps is not None:
        return config.steps
    return max(1, math.ceil(rows / together * config.epochs))


def training_arguments(
    config: PruneConfig | FinetuneConfig, *, steps: int, device: torch.device, folder: str
) -> TrainingArguments:
    """Return the Trainer's arguments for a run: AdamW, cosine decay, nothing saved.

    Without training the learning rate is zero: LoRA's B stays zero, and merging adds nothing.
    """
    chosen: dict[str, Any] = {"optim": OPTIMISERS[config.optimizer]} if config.optimizer in OPTIMISERS else {}
    return TrainingArguments(
        **chosen,
        fp16=config.dtype == "float16",
        torch_compile=config.compile,
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=0.0 if config.steps == 0 else config.lr,
        lr_scheduler_type="cosine",
        max_grad_norm=0.0 if isinstance(config, PruneConfig) else config.clip,  # else the callback clips, after scoring
        seed=config.order_seed,
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=config.pruning().depth,  # a layer that lost all its units gets no gradient
        logging_steps=max(1, steps // LOSSES_AT_LEAST),
        logging_nan_inf_filter=False,
        save_strategy="no",
        remove_unused_columns=False,
        report_to=config.loggers(),
        run_name=Path(config.output).name,
        disable_tqdm=True,
    )


def scores_forward(config: PruneConfig | FinetuneConfig) -> bool:
    """Return whether a run needs no backward pass: it does not train, and its criterion only reads activations."""
    if config.steps != 0 or config.dtype == "float16" or not isinstance(config, PruneConfig):
        return False
    return not criteria.get(config.chosen_criterion).needs_gradient


@contextmanager
def dashboards(folder: str) -> Iterator[None]:
    """Make TensorBoard write to `folder`, unless the environment names another one, and keep dashboards' output off stdout."""
    known = os.environ.get(TENSORBOARD_FOLDER)
    os.environ[TENSORBOARD_FOLDER] = known or folder
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if not known:
            del os.environ[TENSORBOARD_FOLDER]


def _maker(config: PruneConfig | FinetuneConfig, task: Task, teacher: Teacher | None) -> Callable[..., GuardedTrainer]:
    """Return what makes the Trainer: one whose loss is the text's, or one that imitates a teacher too."""
    if teacher is None:
        return GuardedTrainer
    assert isinstance(config, PruneConfig)
    return partial(DistillingTrainer, teacher=teacher, weight=config.distill, predictions=task.predictions)


def train(
    model: nn.Module,
    data: Prepared,
    *,
    config: PruneConfig | FinetuneConfig,
    task: Task,
    callbacks: Sequence[TrainerCallback],
    keeper: Keeper,
    teacher: Teacher | None = None,
) -> int:
    """Train an adapted model, with a teacher on its logits too, and return the optimiser steps taken.

    Where `keeper` has restored a checkpoint, the model has its shapes and adapters by now, and training continues from there.
    """
    rows, collator, device = data.training, data.collator, next(model.parameters()).device
    steps = optimiser_steps(config, len(rows))
    if config.checkpointing:
        enable_checkpointing(model)
    with tempfile.TemporaryDirectory() as folder, dashboards(f"{config.output}-logs"):
        trainer = _maker(config, task, teacher)(
            model=model,
            args=training_arguments(config, steps=steps, device=device, folder=folder),
            train_dataset=NumberedRows(rows) if teacher else rows,
            data_collator=NumberedCollator(collator) if teacher else collator,
            callbacks=[*callbacks, keeper],
            guard=keeper.guard,
            counts_targets=task.counts_targets,
            forward_only=scores_forward(config),
            lora_plus=config.lora_plus,
            undivided=[base_layer(layer) for layer in quantised_layers(model).values()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        watches = [callback for callback in callbacks if isinstance(callback, Watch)]
        for watch in watches:
            watch.send = trainer.log
        done = keeper.done or trainer.state
        with kept() as keeper.pending, tf32_products(config.dtype == "tf32"):
            if done.global_step < steps and not any(watch.ended for watch in watches):
                trainer.train(resume_from_checkpoint=str(keeper.origin) if keeper.origin else None)
            else:  # the Trainer would take one step more
                trainer.state = done
                trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    return 0 if config.steps == 0 else int(trainer.state.global_step)
