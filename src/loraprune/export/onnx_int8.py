"""An int8 graph by onnxruntime's dynamic quantisation, compared with the float32 graph in size, speed and quality.

Weights of linear layers have 8 bits and a scale for each output; activations are rounded while the graph runs. Source: onnxruntime 1.22
to 1.32.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.export import ExportConfig
from loraprune.errors import ConfigError, NumericsError
from loraprune.evaluation.precision import difference
from loraprune.evaluation.tasks import Request, find_task, probe_of
from loraprune.evaluation.timing import time_in_turns
from loraprune.export.base import Source
from loraprune.export.graphs import quiet_tracing
from loraprune.export.onnx_session import Session

INT8 = "int8"
REPEATS = 10
"""timed stretches of each graph"""
BATCH, LENGTH = 8, 512
"""rows at a time and tokens in a row, of the data that both graphs are measured on"""


def check_int8(config: PreTrainedConfig, options: ExportConfig) -> None:
    """Refuse int8 for models that write text.

    Raises:
        ConfigError: for such a model.
    """
    task = find_task(config).name
    if options.quantization == INT8 and task in ("causal-lm", "seq2seq"):
        raise ConfigError(
            f"--quantization int8: onnx has it for encoders, and this {config.model_type!r} is for {task}; use --format gguf "
            "--quantization q8_0, or --format torchao"
        )


class GraphModel(PreTrainedModel):
    """A graph in the form of a model, so that its task can measure it."""

    def __init__(self, config: PreTrainedConfig, session: Session) -> None:
        # A graph has its attention already; transformers would look for another in this class.
        super().__init__(type(config).from_dict(config.to_dict(), attn_implementation="eager"))
        self.session = session
        self.place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says where and in which precision it runs

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """Return the logits of inputs (batch, ...)."""
        (logits,) = self.session.run({name: each.numpy() for name, each in inputs.items() if isinstance(each, Tensor)})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def make_int8(source: Source, path: Path) -> dict[str, Any]:
    """Replace a float32 graph by an int8 one, and return how the two compare.

    Returns:
        `exported_vs_int8`, the largest difference of logits relative to the largest one, and `int8`: bytes and seconds of a batch of
        both, how often they give the same class to random inputs, and with data the figure of the model's task.

    Raises:
        NumericsError: if the logits are of another order of magnitude.
    """
    with TemporaryDirectory(dir=path.parent.parent) as room:
        exact = Path(room) / path.name
        files = sorted(path.parent.glob(f"{path.name}*"))  # large weights are beside the graph
        for file in files:
            file.rename(exact.with_name(file.name))
        quantise(exact, path, external=len(files) > 1)
        sessions = {"float32": Session(exact), INT8: Session(path)}
        found = compare(source, sessions)
        found[INT8]["bytes"] = {name: size(one) for name, one in (("float32", exact), (INT8, path))}
        sessions.clear()  # before their files go
    return found


def quantise(exact: Path, path: Path, *, external: bool) -> None:
    """Write a graph with 8-bit weights; constants are folded first, as only constant weights are quantised."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = exact.with_name(f"folded-{exact.name}")
    with quiet_tracing():
        quant_pre_process(exact, folded, skip_symbolic_shape=True, save_as_external_data=external)
        quantize_dynamic(folded, path, weight_type=QuantType.QInt8, per_channel=True, use_external_data_format=external)


def compare(source: Source, sessions: dict[str, Session]) -> dict[str, Any]:
    """Compare both graphs on the model's probe, on the clock, and on data where there are any."""
    inputs = {name: each.numpy() for name, each in probe_of(source.model).items() if isinstance(each, Tensor)}
    logits = {name: torch.from_numpy(session.run(inputs)[0]) for name, session in sessions.items()}
    cost = difference(*logits.values())
    if not cost < 1:
        raise NumericsError(
            f"--quantization int8: 8-bit weights change the logits by {cost:.1e} of the largest; nothing was saved"
        )
    one, other = (each.argmax(-1) for each in logits.values())
    calls = {name: partial(session.run, inputs) for name, session in sessions.items()}
    spreads = time_in_turns(calls, repeats=REPEATS, device=torch.device("cpu"))
    facts: dict[str, Any] = {
        "seconds": {name: spread.median for name, spread in spreads.items()},
        "same_class": (one == other).float().mean().item(),
    }
    return {"exported_vs_int8": cost, INT8: facts | (measure(source, sessions) if source.options.data else {})}


def measure(source: Source, sessions: dict[str, Session]) -> dict[str, Any]:
    """Return the figure of the model's task on the data, of both graphs."""
    options, task = source.options, find_task(source.config, source.options.task)
    request = Request(
        source.name, source.config, None, options.data, LENGTH, trust_remote_code=options.trust_remote_code
    )
    prepared = task.prepare(request)
    found = {
        name: task.evaluate(GraphModel(source.config, session), prepared, BATCH) for name, session in sessions.items()
    }
    metric = found[INT8].metric
    return {"data": options.data, "metric": metric, metric: {name: one.value for name, one in found.items()}}


def size(path: Path) -> int:
    """Return the bytes of a graph and its external weights."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
