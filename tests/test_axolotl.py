"""The plugin for Axolotl does its work through the hooks that `axolotl.integrations.base.BasePlugin` documents.

Axolotl's pins exclude the libraries of this environment. A stand-in has its base class with the same hooks, and calls them in the order
of `axolotl.train`; tests/training/test_trainers_of_others.py runs Axolotl itself.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

from loraprune import LoRAPruneConfig, attach_lora
from loraprune.errors import ConfigError
from tests.fitting import Rows, arguments
from tests.samples import save_tiny

HOOKS = (
    "load_datasets", "pre_model_load", "post_model_build", "pre_lora_load", "post_lora_load", "post_model_load",
    "get_trainer_cls", "post_trainer_create", "create_optimizer", "create_lr_scheduler", "add_callbacks_post_trainer", "post_train_unload",
)  # fmt: skip
"""hooks that Axolotl calls on every plugin and that this one leaves to the base class"""


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the plugin as Axolotl makes it: by the name in its configuration."""
    base = type("BasePlugin", (), {name: lambda self, *args, **options: None for name in HOOKS})
    stand_in: Any = ModuleType("axolotl.integrations.base")
    stand_in.BasePlugin = base
    for name in ("axolotl", "axolotl.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    module = importlib.reload(importlib.import_module("loraprune.axolotl"))
    made = module.LoRAPrunePlugin()
    assert isinstance(made, base)
    return made


def test_a_training_with_the_plugin_leaves_a_pruned_folder(plugin: Any, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    options = {"ratio": 0.5, "interval": 1, "local": 0}
    cfg = {"base_model": str(folder), "output_dir": str(tmp_path / "out"), "adapter": "lora", "loraprune": options}
    dense = AutoModelForCausalLM.from_pretrained(folder)
    parameters = dense.num_parameters()
    model = attach_lora(dense, LoRAPruneConfig(rank=4))
    callbacks = plugin.add_callbacks_pre_trainer(cfg, model)
    Trainer(model=model, args=arguments(tmp_path, steps=4), train_dataset=Rows(), callbacks=callbacks).train()
    plugin.post_train(cfg, model)
    plugin.post_train(cfg, model)  # Axolotl 0.19 calls it twice
    assert not (tmp_path / "out" / "pruned-2").exists()
    left = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "pruned")
    assert left.num_parameters() < parameters
    assert torch.isfinite(left(input_ids=torch.arange(8)[None]).logits).all()
    assert (tmp_path / "out" / "pruned" / "tokenizer.json").is_file()


def test_the_key_of_the_configuration_passes_axolotls_schema(plugin: Any) -> None:
    module, _, name = plugin.get_input_args().rpartition(".")
    schema = getattr(importlib.import_module(module), name)
    assert schema(loraprune={"ratio": 0.2}).loraprune == {"ratio": 0.2}
    assert schema().loraprune is None
    with pytest.raises(ValueError, match="loraprune"):
        schema(loraprune=3)


@pytest.mark.parametrize(
    ("cfg", "words"),
    [
        ({"adapter": "lora", "loraprune": {"ratio": 1.5}}, r"ratio=1\.5: a fraction"),
        ({"adapter": "lora", "loraprune": {"ratoi": 0.5}}, "did you mean 'ratio'"),
        ({"loraprune": {"ratio": 0.5}}, "adapter: None: pruning needs LoRA"),
    ],
)
def test_a_configuration_that_cannot_prune_is_refused_before_a_model_is_loaded(
    plugin: Any, cfg: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        plugin.register(cfg)
    plugin.register({"adapter": "lora"})  # the control


def test_fused_kernels_stay_off_and_are_refused(plugin: Any) -> None:
    cfg: dict[str, Any] = {"adapter": "lora"}
    plugin.register(cfg)
    assert cfg["lora_qkv_kernel"] is False  # Axolotl enables those that are not set
    with pytest.raises(ConfigError, match=r"lora_o_kernel: true: .*write `lora_o_kernel: false`"):
        plugin.register({"adapter": "lora", "lora_o_kernel": True})
