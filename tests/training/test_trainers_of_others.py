"""Axolotl and LLaMA-Factory themselves train, with the plugin and with the script of docs/trainer.md.

Their pins exclude each other and newer libraries: `make axolotl` runs the first in an environment of its own; the second runs where
somebody has installed it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from tests.samples import save_tiny, sentences

ALONE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "AXOLOTL_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(*command: str, folder: Path, **variables: str) -> None:
    """Run Python in `folder`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=folder, env=os.environ | ALONE | variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Return a folder with a model, and a file of texts in the folder `data`."""
    save_tiny(tmp_path / "model")
    (tmp_path / "data").mkdir()
    rows = [json.dumps({"text": text * 4}) for text in sentences(64)]
    (tmp_path / "data" / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def assert_pruned(folder: Path, dense: Path) -> None:
    """Check that stock transformers loads a folder with fewer parameters."""
    left, whole = (AutoModelForCausalLM.from_pretrained(place).num_parameters() for place in (folder, dense))
    assert left < 0.9 * whole


@pytest.mark.slow
@pytest.mark.skipif(find_spec("axolotl") is None, reason="axolotl is not installed: make axolotl")
def test_axolotl_trains_and_leaves_one_pruned_folder(desk: Path) -> None:
    options = {
        "base_model": "model", "output_dir": "out", "dataset_prepared_path": "prepared", "sequence_len": 64, "val_set_size": 0,
        "datasets": [{"path": "data/texts.jsonl", "ds_type": "json", "type": "completion", "field": "text"}],
        "adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True,
        "optimizer": "adamw_torch", "micro_batch_size": 2, "gradient_accumulation_steps": 1, "max_steps": 6,
        "learning_rate": 1e-3, "bf16": False, "fp16": False, "tf32": False, "attn_implementation": "eager",
        "special_tokens": {"pad_token": "<pad>"},
        "plugins": ["loraprune.axolotl.LoRAPrunePlugin"], "loraprune": {"ratio": 0.5, "interval": 1},
    }  # fmt: skip
    (desk / "train.yaml").write_text(yaml.safe_dump(options), encoding="utf-8")
    run("-m", "axolotl.cli.train", "train.yaml", folder=desk)
    assert_pruned(desk / "out" / "pruned", desk / "model")
    assert not (desk / "out" / "pruned-2").exists()


SCRIPT = """
from llamafactory.train.tuner import run_exp
from transformers import AutoTokenizer

from loraprune import LoRAPruneCallback, LoRAPruneConfig, save_pruned

callback = LoRAPruneCallback(LoRAPruneConfig(ratio=0.5))
options = dict(stage="pt", do_train=True, model_name_or_path="model", dataset="texts", dataset_dir="data", template="default",
               cutoff_len=64, finetuning_type="lora", lora_target="all", output_dir="trainer", max_steps=8, report_to="none",
               use_cpu=True)
run_exp(options, callbacks=[callback])
save_pruned(callback, "small", tokenizer=AutoTokenizer.from_pretrained("model"))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llamafactory") is None, reason="llamafactory is not installed")
def test_llama_factory_trains_and_leaves_a_pruned_folder(desk: Path) -> None:
    entry = {"texts": {"file_name": "texts.jsonl", "columns": {"prompt": "text"}}}
    (desk / "data" / "dataset_info.json").write_text(json.dumps(entry), encoding="utf-8")
    run("-c", SCRIPT, folder=desk, DISABLE_VERSION_CHECK="1")
    assert_pruned(desk / "small", desk / "model")
