"""A plugin for Axolotl: its Trainer prunes, and the merged result is saved in the folder `pruned` of Axolotl's output.

    plugins:
      - loraprune.axolotl.LoRAPrunePlugin
    loraprune:
      ratio: 0.2

Axolotl finds both classes by name; its base class is imported only when it asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from loraprune.api import save_pruned
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.functions.arguments import make_options, spoken_in_python
from loraprune.models.opening import load_tokenizer
from loraprune.runtime import launch
from loraprune.training.callback import LoRAPruneCallback

KEY = "loraprune"
"""the part of an Axolotl configuration that holds options of `loraprune.LoRAPruneConfig`"""
FOLDER = "pruned"
"""folder below Axolotl's `output_dir` that the merged and pruned model is saved in"""


class PluginHooks:
    """The hooks of an Axolotl plugin that prune and save."""

    callback: LoRAPruneCallback | None = None

    def get_input_args(self) -> str:
        """Return the name of the model of pydantic that lets Axolotl read the key `loraprune`."""
        return f"{__name__}.LoRAPruneArgs"

    def add_callbacks_pre_trainer(self, cfg: Mapping[str, Any], model: PreTrainedModel) -> list[TrainerCallback]:
        """Return the callback that prunes.

        Raises:
            ConfigError: for options that are wrong, or a training without LoRA.
        """
        if cfg.get("adapter") not in ("lora", "qlora"):
            raise ConfigError(
                f"adapter: {cfg.get('adapter')}: pruning needs LoRA; write `adapter: lora` and `lora_target_linear: true`"
            )
        values = dict(cfg.get(KEY) or {})
        with spoken_in_python(values, LoRAPruneConfig):
            options = make_options(LoRAPruneConfig, values)
        self.callback = LoRAPruneCallback(options)
        return [self.callback]

    def post_train(self, cfg: Mapping[str, Any], model: PreTrainedModel) -> None:
        """Merge LoRA and save the pruned model with its tokenizer, once Axolotl has saved its own files.

        Raises:
            VerificationError: if the folder loads as a different model.
        """
        assert self.callback is not None
        if launch.is_first():
            tokenizer = load_tokenizer(str(cfg.get("tokenizer_config") or cfg["base_model"]))
            save_pruned(self.callback, os.path.join(str(cfg["output_dir"]), FOLDER), tokenizer=tokenizer)


def __getattr__(name: str) -> Any:
    return _made(name)


@cache
def _made(name: str) -> Any:
    """Return a class that needs a base class or a function of Axolotl's environment."""
    if name == "LoRAPrunePlugin":
        base = import_module("axolotl.integrations.base").BasePlugin
        return type(name, (PluginHooks, base), {"__doc__": PluginHooks.__doc__, "__module__": __name__})
    if name == "LoRAPruneArgs":
        return import_module("pydantic").create_model(
            name, loraprune=(dict[str, Any] | None, None), __module__=__name__
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
