"""What somebody without this package does with a folder: load it and generate. As a program it writes what came out to stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def load_and_generate(folder: str | Path) -> dict[str, Any]:
    """Return the class and size of a folder's model, its loss, and what it writes with a cache and without."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 12}
    cached, plain = (model.generate(ids, use_cache=use, **settings)[0].tolist() for use in (True, False))
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    return {
        "cached": cached, "plain": plain, "loss": loss, "class": f"{type(model).__module__}.{type(model).__name__}",
        "parameters": model.num_parameters(), "ours": [name for name in sys.modules if name.startswith("loraprune")],
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(json.dumps(load_and_generate(sys.argv[1])))
