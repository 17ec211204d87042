"""A plugin for Axolotl: its Trainer prunes, and the merged result is saved in the folder `pruned` of Axolotl's output.

    plugins:
      - loraprune.axolotl.LoRAPrunePlugin
    loraprune:
      ratio: 0.2

Axolotl finds both classes by name; its base class is imported only when it asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from functools import cache
from importlib import import_module
from typing import Any

from transformers import PreTrainedModel, TrainerCallback

from loraprune.api import save_pruned
from loraprune.config.in_python import spoken_in_python
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.functions.arguments import make_options
from loraprune.models.opening import load_tokenizer
from loraprune.runtime import launch
from loraprune.training.callback import LoRAPruneCallback

KEY = "loraprune"
"""the part of an Axolotl configuration that holds options of `loraprune.LoRAPruneConfig`"""
FOLDER = "pruned"
"""folder below Axolotl's `output_dir` that the merged and pruned model is saved in"""
KERNELS = ("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel")
"""fused kernels of Axolotl that compute projections without calling their LoRA layers, so that nothing can be scored"""


class PluginHooks:
    """The hooks of an Axolotl plugin that prune and save."""

    callback: LoRAPruneCallback | None = None
    saved = False

    def get_input_args(self) -> str:
        """Return the name of the model of pydantic that lets Axolotl read the key `loraprune`."""
        return f"{__name__}.LoRAPruneArgs"

    def register(self, cfg: MutableMapping[str, Any]) -> None:
        """Check the configuration and keep Axolotl from enabling its fused LoRA kernels, before it loads a model.

        Raises:
            ConfigError: for options that are wrong, a training without LoRA, or a fused kernel that the configuration enables.
        """
        read_options(cfg)
        for name in KERNELS:
            if cfg.get(name):
                raise ConfigError(
                    f"{name}: true: pruning scores the LoRA layers that this kernel bypasses; write `{name}: false`"
                )
            cfg[name] = False

    def add_callbacks_pre_trainer(self, cfg: Mapping[str, Any], model: PreTrainedModel) -> list[TrainerCallback]:
        """Return the callback that prunes."""
        self.callback = LoRAPruneCallback(read_options(cfg))
        return [self.callback]

    def post_train(self, cfg: Mapping[str, Any], model: PreTrainedModel) -> None:
        """Merge LoRA and save the pruned model with its tokenizer. Axolotl 0.19 calls this twice; the first call saves.

        Raises:
            VerificationError: if the folder loads as a different model.
        """
        assert self.callback is not None
        if launch.is_first() and not self.saved:
            self.saved = True
            tokenizer = load_tokenizer(str(cfg.get("tokenizer_config") or cfg["base_model"]))
            save_pruned(self.callback, os.path.join(str(cfg["output_dir"]), FOLDER), tokenizer=tokenizer)


def read_options(cfg: Mapping[str, Any]) -> LoRAPruneConfig:
    """Return the options under the key `loraprune` of a configuration.

    Raises:
        ConfigError: for options that are wrong, or a training without LoRA.
    """
    if cfg.get("adapter") not in ("lora", "qlora"):
        raise ConfigError(
            f"adapter: {cfg.get('adapter')}: pruning needs LoRA; write `adapter: lora` and `lora_target_linear: true`"
        )
    values = dict(cfg.get(KEY) or {})
    with spoken_in_python(values, LoRAPruneConfig):
        return make_options(LoRAPruneConfig, values)


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
