"""Options of the commands `export` and `push`.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from loraprune.config.base import ModelOptions, Options, at_least, failed, idle_options
from loraprune.runtime.output import holds_result, output_problem

FORMATS = ("gguf", "onnx", "padded", "safetensors", "torch", "torchao")
"""programs may register others"""
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""a name on the hub"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelOptions):
    """Convert a model to another format, and check the result by loading it."""

    output: str
    """folder for the result"""
    format: str = "padded"
    """gguf for llama.cpp, onnx for onnxruntime (with a key-value cache), torch (torch.export), torchao (8-bit weights), safetensors for
    vLLM and SGLang, or padded: the dense shapes with zeros for removed units, for loaders that accept no other shapes"""
    quantization: str | None = None
    """precision of the weights. gguf: f16 (default), f32, bf16, q8_0, q5_0, q4_0. torchao: int8. onnx of encoders: int8
    (onnxruntime's dynamic quantisation). safetensors: bf16 (default), f16, f32"""
    data: str | None = None
    """labelled rows on which an int8 ONNX graph is evaluated beside the float32 graph, as `loraprune evaluate` takes them"""
    tensor_parallel: int = 1
    """number of devices that will share each layer (safetensors only); checked before anything is written"""
    overwrite: bool = False
    """replace the output folder if loraprune wrote it"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        problem = output_problem(self.output, overwrite=self.overwrite, inputs=self.inputs())
        least = at_least(("tensor-parallel", self.tensor_parallel, 1))
        measured = f"--data {self.data}: only an int8 graph is measured on it; give --format onnx --quantization int8"
        shared = f"--tensor-parallel {self.tensor_parallel} --format {self.format}: only safetensors is checked for it"
        checks = (
            (self.data is None or (self.format, self.quantization) == ("onnx", "int8"), f"{measured}, or leave it out"),
            (self.tensor_parallel < 2 or self.format == "safetensors", f"{shared}; give that format, or leave it out"),
        )
        return [*super().problems(), *least, *failed(*checks), *([problem] if problem else [])]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        alone = idle_options(self, "the task matters for --data only", "task")
        return [*super().idle(), *(alone if self.data is None else [])]


@dataclass(frozen=True, kw_only=True)
class PushConfig(Options):
    """Upload a result to the hub, with a complete model card."""

    model: str
    """folder written by `prune`, `finetune` or `export`"""
    repo: str
    """repository on the hub, as org/name; created if it does not exist"""
    private: bool = False
    """make the repository private"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        shape = f"--repo {self.repo}: write it as org/name, with letters, digits, '-', '_' and '.'"
        ours = f"--model {self.model}: not a folder written by loraprune; name one with report.json or export.json"
        written = holds_result(Path(self.model))
        return [*super().problems(), *failed((bool(REPOSITORY.fullmatch(self.repo)), shape), (written, ours))]
