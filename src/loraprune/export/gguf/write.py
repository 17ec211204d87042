"""`gguf`: one file for llama.cpp, with the tokenizer in it; a stock architecture where all layers are alike, `deci` where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from loraprune.config.export import QUANTIZATIONS, ExportConfig
from loraprune.errors import CheckpointError, VerificationError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.base import Format, Source, check_task, formats, tokenizer_of
from loraprune.export.gguf.architecture import (
    Architecture,
    Shape,
    context_length,
    find_architecture,
    rope_factors,
    rope_of,
    shape_of,
)
from loraprune.export.gguf.llamacpp import PACKAGE, LlamaCpp, check_runs, llamacpp_version
from loraprune.export.gguf.tensors import TYPES, add_tensors, make_layout, read_back_
from loraprune.export.gguf.tokenizer import add_vocabulary, read_vocabulary
from loraprune.models.folder import TOKENIZER_CONFIG
from loraprune.models.layerwise.register import stock_of
from loraprune.models.opening import resolve

TOLERANCE = {"f32": 1e-3, "f16": 1e-2, "bf16": 3e-2, "q8_0": 0.15, "q5_0": 0.15, "q4_0": 0.15}
"""largest difference of logits between llama.cpp and the same rounded weights in transformers: llama.cpp rounds what a weight is
multiplied by as well, to the weight's kind"""
TEXTS = (
    "Once upon a time, there was a little girl named Lily.",
    "def add(a, b):\n    return a + b  # 12345 and 6.78\n\n",
    "Grüße, naïve café — 東京 🙂  two spaces\tand a tab's end",
)
"""text on which both tokenizers are compared"""


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the file, read every tensor back, and compare llama.cpp's logits and tokens where it is installed."""
    import gguf

    architecture, shape = find_architecture(source.config), shape_of(source.config)
    tokenizer, config = tokenizer_of(source), stock_of(source.config)
    vocabulary = read_vocabulary(tokenizer, config.vocab_size)
    layout, path = make_layout(architecture, shape), folder / f"model-{source.quantization}.gguf"
    writer = gguf.GGUFWriter(path, architecture.name)
    add_head(writer, config, architecture, shape, source.quantization)
    add_vocabulary(writer, tokenizer, vocabulary)
    left = add_tensors(writer, source.model, layout, source.quantization)
    factors = rope_factors(config)
    if factors is not None:
        import numpy as np

        writer.add_tensor("rope_freqs.weight", np.array(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    probe = probe_of(source.model)
    exact = logits_of(source.model, probe)
    found = {"largest_rounding": read_back_(source.model, path, layout, source.quantization)}
    found["source_vs_rounded"] = difference(exact, logits_of(source.model, probe))
    how = f"every tensor read back by gguf's GGUFReader; {PACKAGE} is not installed, so llama.cpp did not run it"
    installed = llamacpp_version()
    if installed:
        check_runs(path, context=64)
        found["rounded_vs_llama_cpp"] = compare_logits(source, path)
        how = f"{PACKAGE} {installed}: logits, and the tokens of {len(TEXTS)} texts; every tensor read back by gguf's GGUFReader"
        compare_tokens(tokenizer, LlamaCpp(path, context=64))
    return {
        "architecture": architecture.name,
        "not_quantized": left,
        "verification": found,
        "verified_by": how,
        "load": f"llama-cli -m {path.name}",
    }


def add_head(
    writer: Any, config: PreTrainedConfig, architecture: Architecture, shape: Shape, quantization: str
) -> None:
    """Write the figures of the model; everything that llama.cpp would otherwise guess from layer 0 is explicit."""
    import gguf

    def counts(values: Any) -> Any:
        return values[0] if shape.is_uniform else list(values)

    rope = rope_of(config)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(shape.heads))
    writer.add_feed_forward_length(counts(shape.ffn))
    writer.add_head_count(counts(shape.heads))
    writer.add_head_count_kv(counts(shape.key_value_heads))
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if architecture.name == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    writer.add_file_type(gguf.LlamaFileType[TYPES[quantization][1]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def compare_logits(source: Source, path: Path) -> float:
    """Return how much llama.cpp's logits differ from the model's, whose weights are those of the file.

    Raises:
        VerificationError: if that is more than rounding explains.
    """
    probe = dict(probe_of(source.model))
    tokens = probe["input_ids"][:1, : context_length(source.config)]
    rows = {
        name: value[:1, : tokens.shape[1]] if isinstance(value, torch.Tensor) else value
        for name, value in probe.items()
    }
    engine = LlamaCpp(path, context=max(64, tokens.shape[1]))
    found = difference(logits_of(source.model, rows)[0], torch.from_numpy(engine.logits(tokens[0].tolist())))
    allowed = TOLERANCE[source.quantization]
    if not found <= allowed:
        raise VerificationError(
            f"llama.cpp's logits differ by {found:.1e} of the largest, {allowed:.0e} is allowed; nothing was saved. Please report "
            "this with the command and the output of `loraprune inspect`"
        )
    return found


def compare_tokens(tokenizer: Any, engine: LlamaCpp) -> None:
    """Raise a VerificationError for a text that llama.cpp splits into other tokens than the tokenizer."""
    for text in TEXTS:
        expected, found = tokenizer(text)["input_ids"], engine.tokenize(text)
        if found != expected:
            place = next((n for n, pair in enumerate(zip(expected, found, strict=False)) if pair[0] != pair[1]), 0)
            raise VerificationError(
                f"llama.cpp splits {text[:24]!r}... into other tokens: {found[place : place + 4]} instead of "
                f"{expected[place : place + 4]} at place {place}; nothing was saved. Please report this with the name of the model"
            )


def check(config: PreTrainedConfig, options: ExportConfig) -> None:
    """Raise a LoraPruneError if no architecture or no tokenizer can be written."""
    check_task("gguf", config, "causal-lm")
    find_architecture(config)
    folder = Path(resolve(options.model))
    if folder.is_dir() and not (folder / TOKENIZER_CONFIG).is_file():
        raise CheckpointError(
            f"--model {options.model}: it has no tokenizer, which a GGUF file holds; save one into the folder"
        )


formats.add(
    "gguf",
    Format(
        write,
        check,
        needs=("gguf",),
        quantizations=QUANTIZATIONS["gguf"],
    ),
)
