"""One training step without memory: forward, loss and backward of a model on the meta device, counting tensors and FLOPs.

The result is exact for the operations that PyTorch carries out; attention and dropout are assumed to be fused, as they are on
GPUs: no matrix of all pairs of tokens is kept, and of dropout one byte a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from loraprune.evaluation.tasks import Inputs
from loraprune.models.adapters import base_model
from loraprune.models.teacher_logits import TOP, TeacherLogits, teacher_logits
from loraprune.scoring import Scorer
from loraprune.training.footprint.live import LiveBytes
from loraprune.training.footprint.repeats import Repeats, Trace
from loraprune.training.imitation import imitation_loss

aten: Any = torch.ops.aten
META = torch.device("meta")
KINDS = ("activations", "logits", "gradients")
Teacher: TypeAlias = nn.Module | Literal["cache"] | None
"""a second model that computes logits for every batch, or one whose logits are read from disk"""


@dataclass(frozen=True, slots=True)
class Step:
    """The cost of a step of one micro-batch besides weights, adapters and optimiser."""

    peak: Mapping[str, int]
    """`activations`, `logits` and `gradients` -> bytes at the peak"""
    flops: int
    """of forward and backward, two for each multiplication with its addition"""

    @property
    def total(self) -> int:
        """Return the bytes at the peak."""
        return sum(self.peak.values())


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of a micro-batch, without values."""

    values: Shaped[Tensor, "..."]
    classes: int
    """numbers that the model gives for each of them"""


class FusedKernels(TorchFunctionMode):
    """Lets attention keep what fused kernels keep, queries, keys, values, output and one number a row, and dropout its mask.

    PyTorch's CPU has no fused kernel for attention with dropout or a mask that learns, and keeps dropout's factors in the precision of
    what is multiplied (`cpu`); on GPUs `at::dropout` is `native_dropout`, whose mask is of booleans.
    """

    def __init__(self, *, cpu: bool) -> None:
        super().__init__()
        self.cpu = cpu

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Carry out a function of torch."""
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is functional.dropout and not self.cpu:
            return self._drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _drop(self, values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or inplace or not 0 < p < 1:
            return functional.dropout(values, p, training, inplace)
        left: Tensor = torch.native_dropout(values, p, True)[0]
        return left

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        if self.cpu and (dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad)):
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is None:
            out: Tensor = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale
            )[0]
            return out
        shape = (*query.shape[:3], key.shape[2])
        bias = attn_mask if attn_mask.dtype == query.dtype else torch.empty_like(attn_mask, dtype=query.dtype)
        out = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias.expand(shape), True, dropout_p, is_causal, scale=scale
        )[0]
        return out


def run_step(
    model: nn.Module, inputs: Inputs, *, micro_batches: int = 1, teacher: Teacher = None, cpu: bool = False,
    labels: Labels | None = None, scorer: Scorer | None = None, repeats: Repeats | None = None,
) -> Step:  # fmt: skip
    """Run a step of a model on the meta device.

    Args:
        model: In the precision it computes in, with its adapters.
        inputs: One micro-batch, without labels.
        micro_batches: Their number; from the second on there are gradients of earlier ones.
        teacher: What else gives logits for every batch.
        cpu: Count what is kept where PyTorch computes on a CPU.
        labels: What `labels_for` returned for these inputs, which saves a forward pass.
        scorer: What has its hooks on the model, if anything has.
        repeats: Layers of the base model that need not all be run.
    """
    model.train()
    given = labels or labels_for(model, inputs)

    def run() -> Trace:
        trace = _trace(model, inputs, given, passes=min(micro_batches, 2), teacher=teacher, cpu=cpu)
        if scorer:
            scorer.forget()
        return trace

    trace = (repeats.trace(base_model(model), run) if repeats else None) or run()
    peak = dict(zip(KINDS, trace.peak().tolist(), strict=True))
    return Step(peak, trace.flops // min(micro_batches, 2))


def _trace(
    model: nn.Module, inputs: Inputs, labels: Labels, *, passes: int, teacher: Teacher, cpu: bool
) -> Trace:  # fmt: skip
    """Run some micro-batches and return what they allocate."""
    batch = _on_meta(inputs)
    values, classes = labels.values, labels.classes

    def name(tensor: Tensor) -> str:
        return (
            "logits"
            if tensor.ndim and tensor.shape[-1] == classes and tensor.numel() >= values.numel()
            else "activations"
        )

    others = teacher.parameters() if isinstance(teacher, nn.Module) else ()
    live = LiveBytes([*model.parameters(), *model.buffers(), *others], name=name)
    with META, _gradients_of(model, live), FusedKernels(cpu=cpu), live:
        for _ in range(passes):
            loss = _loss(model, batch, values, classes, teacher=teacher, live=live)
            live.begin_phase()
            # An edge instead of a tensor: modes stay in force where the backward pass computes a block once more.
            edge = torch.autograd.graph.get_gradient_edge(loss)
            torch.autograd.backward(edge, grad_tensors=torch.ones_like(loss))
            del loss, edge
            live.begin_phase()
    model.zero_grad(set_to_none=True)
    phases = [[[at.get(kind, 0) for kind in KINDS] for at in phase] for phase in live.phases if phase]
    return Trace(tuple(np.array(phase) for phase in phases), live.flops)


def _loss(
    model: nn.Module, batch: Mapping[str, Any], labels: Tensor, classes: int, *, teacher: Teacher, live: LiveBytes
) -> Tensor:  # fmt: skip
    """Return the loss of a micro-batch, with no more alive than what the backward pass needs."""
    targets = None
    if isinstance(teacher, nn.Module):
        targets = teacher_logits(teacher, {name: value for name, value in batch.items() if isinstance(value, Tensor)})
        live.begin_phase()
    elif teacher:
        targets = _read_targets(labels, classes)
    output = model(**batch, labels=labels)
    loss: Tensor = output.loss
    return (
        loss + imitation_loss(output.logits, targets, labels, lambda values, _: values.flatten(0, -2))
        if targets
        else loss
    )


def labels_for(model: nn.Module, inputs: Inputs) -> Labels:
    """Return labels for a micro-batch: the model is run once, as only that shows the shape of its logits."""
    with META, torch.no_grad(), LiveBytes([], name=lambda _: ""):
        logits: Tensor = model(**_on_meta(inputs)).logits
    config: Any = base_model(model).config
    regression = getattr(config, "num_labels", 0) == 1 and logits.shape[-1] == 1
    kind = logits.dtype if regression else torch.long
    return Labels(torch.zeros(logits.shape[:-1], dtype=kind, device=META), logits.shape[-1])


def _on_meta(inputs: Inputs) -> dict[str, Any]:
    return {name: value.to(META) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _read_targets(labels: Tensor, classes: int) -> TeacherLogits:
    shape = (*labels.shape, min(TOP, classes - 1))
    return TeacherLogits(torch.empty(shape), torch.empty(shape, dtype=torch.long))


@contextmanager
def _gradients_of(model: nn.Module, live: LiveBytes) -> Iterator[None]:
    """Count the gradient of a parameter as a gradient."""

    def mark(parameter: Tensor) -> None:
        assert parameter.grad is not None
        live.call_it(parameter.grad, "gradients")

    handles = [p.register_post_accumulate_grad_hook(mark) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
