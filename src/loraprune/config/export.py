"""Options of the commands `export` and `push`.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraprune.config.base import ModelOptions, Options, at_least, failed, idle_options
from loraprune.errors import nearest
from loraprune.runtime.output import holds_result, output_problem

QUANTIZATIONS: Mapping[str, tuple[str, ...]] = {
    "gguf": ("f16", "f32", "bf16", "q8_0", "q5_0", "q4_0"), "onnx": ("f32", "int8"), "padded": (),
    "safetensors": ("bf16", "f16", "f32"), "torch": (), "torchao": ("int8",),
}  # fmt: skip
"""format -> values of --quantization, the first being what stands without it; programs may register other formats"""
FORMATS = tuple(QUANTIZATIONS)
K_QUANTS = (
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_xs", "iq4_nl", "iq3_m", "iq2_m",
)  # fmt: skip
ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "gguf": dict.fromkeys(
        K_QUANTS,
        "K- and I-quants are written by llama.cpp's own tool: export with --quantization f16, then run "
        "`llama-quantize model-f16.gguf small.gguf {}`",
    ),
    "torchao": {
        "int4": "torchao packs 4-bit weights with kernels of a GPU, so that nothing written here could be checked; on one, load the "
        "folder with TorchAoConfig(Int4WeightOnlyConfig()). For 4 bits on a CPU use --format gguf --quantization q4_0"
    },
}
"""format -> well-known values of --quantization that another tool must write -> the remedy"""
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
            (
                self.format != "padded" or not os.path.isdir(self.model) or (Path(self.model) / "plan.json").is_file(),
                f"--model {self.model} --format padded: no plan.json in the folder; name one written by `loraprune prune`, or another "
                "--format",
            ),
            (self.tensor_parallel < 2 or self.format == "safetensors", f"{shared}; give that format, or leave it out"),
        )
        quantized = quantization_problem(self.format, self.quantization)
        return [*super().problems(), *least, *failed(*checks), *(one for one in (quantized, problem) if one)]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        alone = idle_options(self, "the task matters for --data only", "task")
        return [*super().idle(), *(alone if self.data is None else [])]


def quantization_problem(name: str, asked: str | None) -> str | None:
    """Return in one sentence why a format has no such --quantization; None for one that it has, and for a format of another program."""
    known, elsewhere = QUANTIZATIONS.get(name), ELSEWHERE.get(name, {})
    if asked is None or known is None or asked in known:
        return None
    if asked.lower() in elsewhere:
        return f"--quantization {asked}: {elsewhere[asked.lower()].format(asked.upper())}"
    if not known:
        return f"--quantization {asked}: {name} keeps the precision of the folder; leave it out"
    return f"--quantization {asked}{nearest(asked, known)}: {name} writes {', '.join(known)}"


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
