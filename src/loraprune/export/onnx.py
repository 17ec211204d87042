"""`onnx`: one graph for prefill and decoding with a key-value cache; two of an encoder-decoder; the logits of a model that writes no text.

Inputs and outputs have the names that onnxruntime's tools know: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key`; `logits`, `present.N.key`. A prefill has a cache of no tokens. `encoder_model.onnx` gives the keys and values
of the source that `decoder_model.onnx` reads as `past_key_values.N.encoder.key` beside its own `past_key_values.N.decoder.key`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from transformers import PreTrainedModel

from loraprune.config.export import QUANTIZATIONS
from loraprune.errors import UnsupportedModelError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import find_task, probe_of
from loraprune.export.base import Format, Source, formats, save_companions
from loraprune.export.graphs import cache_shapes, quiet_tracing, trace_logits, trace_pair, trace_step
from loraprune.export.onnx_int8 import INT8, check_int8, make_int8
from loraprune.export.onnx_session import PAIR, PairSession, Session
from loraprune.pruning.verify import check_difference

NAME = "model.onnx"
STEPS = 4
"""tokens that are decoded one by one for verification"""
LARGEST = 1 << 30
"""bytes of weights that are stored in the graph's file itself; a protobuf is limited to 2 GiB"""


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the graph, and compare onnxruntime with the model."""
    task, names = find_task(source.config).name, [NAME]
    if task == "causal-lm":
        found = write_step(source.model, folder / NAME)
        what = f"prefill of padded rows, {STEPS} greedy steps with the cache"
    elif task == "seq2seq":
        found, names = write_pair(source.model, folder), list(PAIR)
        what = f"padded sources, {STEPS} greedy steps of the target with the cache"
    else:
        found = write_logits(source.model, folder / NAME)
        what = "logits of two batches"
    verification = {"source_vs_exported": check_difference("model and onnx graph", found, torch.float32)}
    more: dict[str, Any] = {}
    if source.quantization == INT8:
        more = make_int8(source, folder / NAME)
        verification["exported_vs_int8"] = more.pop("exported_vs_int8")
    save_companions(source, folder)
    return more | {
        "verification": verification,
        "verified_by": f"onnxruntime {version('onnxruntime')} on the CPU: {what}",
        "load": ", ".join(f"onnxruntime.InferenceSession('{name}')" for name in names),
    }


def write_step(model: PreTrainedModel, path: Path) -> float:
    """Write a causal model with its cache; return the largest difference of logits, in prefill and in decoding."""
    shapes = cache_shapes(model)
    layers = [f"{place // 2}.{'value' if place % 2 else 'key'}" for place in range(len(shapes))]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in layers)]
    outputs = ["logits", *(f"present.{name}" for name in layers)]
    save_graph(model, trace_step(model, shapes), path, inputs, outputs)
    return compare_decoding(model, Session(path))


def write_pair(model: PreTrainedModel, folder: Path) -> float:
    """Write an encoder-decoder with its cache; return the largest difference of logits while it decodes."""
    encoder, decoder, layers = trace_pair(model)
    own, read = (
        [f"{place}.{side}.{part}" for place in range(layers) for part in ("key", "value")]
        for side in ("decoder", "encoder")
    )
    first, second = (folder / name for name in PAIR)
    save_graph(model, encoder, first, ["input_ids", "attention_mask"], [f"present.{name}" for name in read])
    inputs = ["input_ids", "encoder_attention_mask", *(f"past_key_values.{name}" for name in (*own, *read))]
    save_graph(model, decoder, second, inputs, ["logits", *(f"present.{name}" for name in own)])
    return compare_targets(model, PairSession(folder))


def write_logits(model: PreTrainedModel, path: Path) -> float:
    """Write the logits of any model; return the largest difference on two batches of different sizes."""
    program, inputs = trace_logits(model)
    save_graph(model, program, path, list(inputs), ["logits"])
    session, probe, found = Session(path), dict(probe_of(model)), 0.0
    for rows in (2, 1):
        part = {name: tensor[:rows] for name, tensor in inputs.items()}
        (logits,) = session.run({name: tensor.numpy() for name, tensor in part.items()})
        found = max(found, difference(logits_of(model, probe | part), torch.from_numpy(logits)))
    return found


def save_graph(
    model: PreTrainedModel, program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]
) -> None:
    """Translate a traced program and write it, large weights beside it.

    Raises:
        UnsupportedModelError: if torch.onnx has no translation for something in it.
    """
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > LARGEST
    with quiet_tracing():
        try:
            graph = torch.onnx.export(
                program, (), None, input_names=inputs, output_names=outputs, dynamo=True, verbose=False
            )
        except Exception as error:  # a translator fails with nearly anything
            why = " ".join(str(error).split())[:200]
            raise UnsupportedModelError(
                f"{model.config.model_type!r} cannot be written by torch.onnx {torch.__version__} "
                f"({type(error).__name__}: {why}); try --format torch, which needs no translation"
            ) from None
        assert graph is not None
        graph.save(path, external_data=large)


def compare_decoding(model: PreTrainedModel, session: Session) -> float:
    """Return the largest difference of logits between a graph and a model that reads everything again at each step.

    The first of two rows is padded on the left; the tokens are the model's greedy ones.
    """
    ids = probe_of(model)["input_ids"][:2, :8]
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    past, new, found = session.empty_cache(2), ids, 0.0
    for _ in range(1 + STEPS):
        logits, past = session.step(new.numpy(), mask.numpy(), past)
        expected = _whole(model, ids, mask)[:, -new.shape[1] :]
        seen = mask[:, -new.shape[1] :].bool()
        found = max(found, difference(expected[seen], torch.from_numpy(np.asarray(logits))[seen]))
        new = expected[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return found


@torch.inference_mode()
def compare_targets(model: PreTrainedModel, session: PairSession) -> float:
    """Return the largest difference of logits between two graphs and a model that reads source and target again at each step.

    The second of two sources is padded; targets start with two given tokens and continue with the model's greedy ones.
    """
    probe = probe_of(model)
    ids, targets = probe["input_ids"][:2, :8], probe["decoder_input_ids"][:2, :2]
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    source, past, new, found = session.encode(ids.numpy(), mask.numpy()), session.decoder.empty_cache(2), targets, 0.0
    for _ in range(1 + STEPS):
        logits, past = session.step(new.numpy(), mask.numpy(), source, past)
        given = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": targets, "use_cache": False}
        expected: Tensor = model.eval()(**given).logits.float()[:, -new.shape[1] :]
        found = max(found, difference(expected, torch.from_numpy(np.asarray(logits))))
        new = expected[:, -1:].argmax(-1)
        targets = torch.cat([targets, new], 1)
    return found


@torch.inference_mode()
def _whole(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the logits of all tokens, read without a cache."""
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "position_ids" in inspect.signature(model.forward).parameters:
        given["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    logits: Tensor = model.eval()(**given).logits
    return logits.float()


formats.add(
    "onnx",
    Format(
        write,
        check_int8,
        needs=("onnx", "onnxscript", "onnxruntime"),
        quantizations=QUANTIZATIONS["onnx"],
        any_task=True,
    ),
)
