"""What the tests of the main job share: a short run, and how a stranger reads what it leaves."""

from __future__ import annotations

import functools
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from loraprune.config import PruneConfig

SHORT: dict[str, Any] = {"steps": 10, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu",
                         "html": False}  # fmt: skip
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "report.json", "run.yaml",
         "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
STEP = 8
"""--round: the FFN width of every layer is a multiple of it"""

LOAD_AND_GENERATE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 12}
cached, plain = (model.generate(ids, use_cache=use, **settings)[0].tolist() for use in (True, False))
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss.item()
print(json.dumps({"cached": cached, "plain": plain, "loss": loss, "loraprune": "loraprune" in sys.modules,
                  "class": type(model).__name__, "parameters": model.num_parameters()}))
"""


def prune_config(inputs: Path, output: Path, **changes: Any) -> PruneConfig:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    return PruneConfig(**(paths | SHORT | {"ratio": 0.5} | changes))


def read_report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return values


def shapes(folder: Path) -> dict[str, list[int]]:
    """Read tensor shapes from the bytes of a safetensors file alone: eight bytes of length, then JSON."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def count(folder: Path, *, prunable: bool = False) -> int:
    """Count the numbers in a weight file; `prunable` only those in projections of attention and FFN."""
    sizes = {name: functools.reduce(lambda a, b: a * b, shape, 1) for name, shape in shapes(folder).items()}
    return sum(size for name, size in sizes.items() if not prunable or "_proj." in name)


@functools.cache
def loaded_elsewhere(folder: Path) -> dict[str, Any]:
    """Load a folder and generate with it in a new process that has only transformers."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", LOAD_AND_GENERATE, str(folder)],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def check_loads_anywhere(folder: Path) -> None:
    found = loaded_elsewhere(folder)
    assert not found["loraprune"]
    assert found["cached"] == found["plain"]
    assert len(found["cached"]) >= 12
    assert found["parameters"] == read_report(folder)["parameters"]["pruned"]


def one_step(folder: Path, dense: Path) -> float:
    """Return the ratio that one rounding step of the FFN in every layer stands for."""
    widths = {name: shape for name, shape in shapes(dense).items() if "mlp" in name}
    each = sum(STEP * min(shape) for shape in widths.values())
    return each / count(dense, prunable=True)
