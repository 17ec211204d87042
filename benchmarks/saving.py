"""What a run holds in CPU memory, stage by stage: loading, training, merging, saving in small files, verifying.

    python -m benchmarks.saving

A random Llama that is stored in bfloat16 and computed in float32 loses half of its units without training. Private memory is what
a process holds; mapped are pages of files, which safetensors maps to read them, and which the system takes back when it needs them:
resident memory, as `top` and VmHWM count it, is the sum. Both are read every few milliseconds, above what the process had before
the model was loaded and after a tiny one was pruned, so that libraries that are imported on the way do not count as the model's.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.helpers import common
from tests.samples import VOCABULARY, byte_tokenizer, write_text
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune import merge, pipeline
from loraprune.config.training import PruneConfig

SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 9, "num_attention_heads": 16,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
TINY: dict[str, Any] = SHAPE | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHARD = "20MB"
STAGES = {
    "loading": (pipeline, "load_run"), "training": (pipeline, "fit"), "merging": (merge, "merge_lora"),
    "rounding": (merge, "round_weights_"), "casting": (merge, "cast_weights_"), "saving": (merge, "save_model"),
    "verifying": (pipeline, "verify"),
}  # fmt: skip
KINDS = {"private": ("RssAnon",), "mapped": ("RssFile", "RssShmem")}


def held() -> dict[str, int]:
    """Return the bytes of private and of mapped memory that this process has."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
    found = {name.rstrip(":"): 1024 * int(value) for name, value, _ in lines}
    return {kind: sum(found[name] for name in names) for kind, names in KINDS.items()}


class Watcher(threading.Thread):
    """Keeps the largest of what is held during each stage."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, dict[str, int]] = {}
        self._stage, self._done = "", threading.Event()

    def run(self) -> None:
        self.before = held()
        while not self._done.wait(0.003):
            if stage := self._stage:  # read once: the other thread may end the stage meanwhile
                now, peak = held(), self.peaks[stage]
                for kind, size in now.items():
                    peak[kind] = max(peak[kind], size - self.before[kind])

    def stage(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is watched."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self.peaks[name], self._stage = dict.fromkeys(KINDS, 0), name
            try:
                return function(*arguments, **options)
            finally:
                self._stage = ""

        return watched

    def end(self) -> None:
        self._done.set()
        self.join()


def make(folder: Path, shape: dict[str, Any]) -> int:
    """Write a random model in bfloat16 with a tokenizer and a text, and return its parameters."""
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(torch.bfloat16)
    model.save_pretrained(folder / "model", max_shard_size=SHARD)
    byte_tokenizer().save_pretrained(folder / "model")
    write_text(folder / "text.txt", 40)
    return int(model.num_parameters())


def prune(folder: Path) -> dict[str, Any]:
    """Take half of a folder's model away without training, and return the report."""
    return pipeline.prune(PruneConfig(
        model=str(folder / "model"), data=str(folder / "text.txt"), output=str(folder / "out"), ratio=0.5, steps=0, rows=4,
        batch=2, length=16, device="cpu", html=False, max_shard_size=SHARD,
    )).values  # fmt: skip


def main() -> None:
    if sys.platform != "linux":
        sys.exit("reads /proc, which only Linux has")
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed tensors go back to the system at once
    with tempfile.TemporaryDirectory() as name:
        tiny, folder = Path(name) / "tiny", Path(name) / "large"
        tiny.mkdir(), folder.mkdir()
        make(tiny, TINY)
        parameters = make(folder, SHAPE)
        prune(tiny)
        gc.collect()
        watcher = Watcher()
        for stage, (module, function) in STAGES.items():
            setattr(module, function, watcher.stage(stage, getattr(module, function)))
        watcher.start()
        report = prune(folder)
        watcher.end()
        largest = max(path.stat().st_size for path in (folder / "out").glob("*.safetensors"))
    sizes = {"dense, computed with": 4 * parameters, "dense, stored": 2 * parameters,
             "pruned, computed with": 4 * report["parameters"]["pruned"], "pruned, stored": 2 * report["parameters"]["pruned"],
             "largest file": largest}  # fmt: skip
    for stage, peak in watcher.peaks.items():
        print(f"{stage}: {' '.join(f'{kind} {size / 2**20:.0f} MiB' for kind, size in peak.items())}", flush=True)
    common.write("saving", {
        "shape": SHAPE, "max_shard_size": SHARD, "parameters": parameters, "bytes": sizes, "peaks": watcher.peaks,
    })  # fmt: skip


if __name__ == "__main__":
    main()
