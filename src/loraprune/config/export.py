"""Options of the commands by which a model leaves: `export` and `push`.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from loraprune.config.base import ModelOptions, Options, at_least, failed
from loraprune.runtime.output import holds_result, output_problem

REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""a name on the hub"""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelOptions):
    """Write a pruned model in another format, and check it by loading it."""

    output: str
    """folder to write"""
    format: str = "padded"
    """`gguf` for llama.cpp, `onnx` with a key-value cache for onnxruntime, `torch` (torch.export), `torchao` (8-bit weights),
    `safetensors` for vLLM and SGLang, `padded`: the dense stock shapes with zeros for removed units, for loaders that know no other"""
    quantization: str | None = None
    """precision of the weights: f16 (the default of gguf), f32, bf16, q8_0, q5_0, q4_0 for gguf; int8 for torchao, and
    for onnx of encoders (onnxruntime's dynamic quantisation); bf16 (the default of safetensors), f16, f32"""
    data: str | None = None
    """with an int8 graph of onnx: labelled rows to measure it on beside the float32 graph, as `loraprune evaluate` takes them"""
    tensor_parallel: int = 1
    """devices that are to share every layer, of safetensors; checked before anything is written"""
    overwrite: bool = False
    """replace the output folder if a run wrote it"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        problem = output_problem(self.output, overwrite=self.overwrite, inputs=self.inputs())
        least = at_least(("tensor-parallel", self.tensor_parallel, 1))
        return [*super().problems(), *least, *([problem] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class PushConfig(Options):
    """Upload a folder that `prune`, `finetune` or `export` wrote to the hub, with a complete model card."""

    model: str
    """folder to upload"""
    repo: str
    """where to, as org/name; made if there is none"""
    private: bool = False
    """make the repository private"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        shape = f"--repo {self.repo}: write it as org/name, of letters, digits, '-', '_' and '.'"
        ours = f"--model {self.model}: it is no folder that loraprune wrote; name one with report.json or export.json"
        written = holds_result(Path(self.model))
        return [*super().problems(), *failed((bool(REPOSITORY.fullmatch(self.repo)), shape), (written, ours))]
