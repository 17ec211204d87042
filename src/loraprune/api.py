"""Three lines for your own Trainer: attach LoRA, add the callback, save the pruned model.

model = attach_lora(model, config)
trainer = Trainer(model=model, ..., callbacks=[callback := LoRAPruneCallback(config)])
trainer.train(); save_pruned(callback, "small/", tokenizer=tokenizer)
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from peft import PeftModel
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraprune.config.in_python import spoken_in_python
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.training import PruneConfig
from loraprune.errors import CheckpointError, ConfigError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.families import find_groups
from loraprune.models import adapters
from loraprune.models.adapters import merge_lora
from loraprune.models.auto_classes import name_class_
from loraprune.models.loading import load_model
from loraprune.models.quantised import prepare_
from loraprune.models.saving import save_model
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.verify import check_difference
from loraprune.runtime.hub import at_home
from loraprune.runtime.workspace import free_name, new_folder
from loraprune.training.callback import LoRAPruneCallback


def attach_lora(model: nn.Module, config: LoRAPruneConfig) -> PeftModel:
    """Put LoRA on every projection that can be pruned. A head for classes, tags, spans or rewards is trained whole.

    All other weights are frozen.

    Raises:
        UnsupportedModelError: if no family supports the model, or no Auto class could load it again with its head.
        ConfigError: if its weights are quantised in a way that cannot be cut, or were repacked by a forward pass on a CPU, or if the kind
            of adapter cannot be used on them.
    """
    with spoken_in_python(vars(config), type(config)):
        described = adapters.config_of(model)
        assert isinstance(model, PreTrainedModel)  # else it had no configuration
        name_class_(model)  # the paths of the layers depend on it
        groups = find_groups(described)
        check_groups(model, groups)
        prepare_(model)
        return adapters.attach_lora(
            model, groups, rank=config.rank, alpha=config.alpha, dropout=config.dropout, seed=config.seed,
            whole=adapters.head_paths(model, groups), kind=config.adapter,
        )  # fmt: skip


def save_pruned(
    callback: LoRAPruneCallback,
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> None:
    """Merge LoRA into the callback's pruned model and save it with its plan and scores.

    It is a stock checkpoint where one can hold the widths, else one with modelling code. The Trainer's model must not be used afterwards.

    Raises:
        ConfigError: if the callback has not seen a training run.
        CheckpointError: if `output` may not be replaced, as `overwrite` is false or something else than loraprune wrote it; the model is
            then saved as OUTPUT-2.
        VerificationError: if the folder loads as a different model; it is kept as OUTPUT.unverified.
    """
    with spoken_in_python({"output": str(output), "overwrite": overwrite}, PruneConfig):
        _save(callback, output, tokenizer=tokenizer, overwrite=overwrite)


def _save(
    callback: LoRAPruneCallback, output: str | Path, *, tokenizer: PreTrainedTokenizerBase | None, overwrite: bool
) -> None:
    pruner = callback.pruner
    if pruner is None:
        raise ConfigError("this callback has not seen a training run: call trainer.train() first")
    if not isinstance(pruner.model, PeftModel):
        raise ConfigError(f"{type(pruner.model).__name__} carries no adapter: attach one with loraprune.attach_lora")
    dense = {"model": str(pruner.dense_config.name_or_path)}
    place = Path(at_home(str(output)))
    problem: CheckpointError | None = None
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(new_folder(place, overwrite=overwrite, costly=True, inputs=dense))
        except CheckpointError as error:
            place, problem = free_name(place), error
            folder = stack.enter_context(new_folder(place, overwrite=False, costly=True))
        merged = merge_lora(pruner.model)
        probe = probe_of(merged)
        expected = logits_of(merged, probe)
        save_model(merged, folder, config=pruner.dense_config, groups=pruner.groups, counts=pruner.counts())
        reloaded = load_model(str(folder), device=merged.device, dtype=merged.dtype)
        check_difference("sliced and reloaded model", difference(expected, logits_of(reloaded, probe)), merged.dtype)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "plan.json").write_text(pruner.plan.to_json() + "\n", encoding="utf-8")
        pruner.check_saved(folder, reloaded)
        if scores := pruner.unit_scores():
            save_file(dict(scores), folder / "scores.safetensors")
    if problem:
        raise CheckpointError(f"{problem}; so that the training is not lost, the model was saved as {place}")
