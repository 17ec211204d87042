"""Closed-form recovery: when units go, the projection that read them is refitted to give what it gave before.

One forward pass over recent training rows, layer after layer: a layer is refitted on what the already refitted layers below
send it, so errors do not add up, and one matrix of second moments exists at a time. Knows nothing about scores.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loraprune.adapters import find_module, is_transposed, projection
from loraprune.errors import NumericsError
from loraprune.groups import Group, Span, consumers, kept_entries

DAMPING = 0.01
"""ridge added to the second moments, as a fraction of their mean diagonal"""


class RecentRows:
    """The last rows that a model was trained on, at most `tokens` tokens of them but at least one micro-batch."""

    def __init__(self, model: nn.Module, *, tokens: int) -> None:
        self._batches: deque[tuple[Tensor, Tensor]] = deque()
        self._tokens = tokens
        self._handle = model.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, _: Any, inputs: Mapping[str, Any]) -> None:
        ids = inputs.get("input_ids")
        if not module.training or ids is None:
            return
        mask = inputs.get("attention_mask")
        self._batches.append((ids, torch.ones_like(ids) if mask is None else mask))
        while len(self._batches) > 1 and sum(i.numel() for i, _ in self._batches) > self._tokens:
            self._batches.popleft()

    def batch(self) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
        """Return token ids and attention mask of all rows, padded on the right to the longest."""
        length = max(ids.shape[1] for ids, _ in self._batches)
        padded = [[nn.functional.pad(t, (0, length - t.shape[1])) for t in pair] for pair in self._batches]
        ids, masks = zip(*padded, strict=True)
        return torch.cat(ids), torch.cat(masks)

    def close(self) -> None:
        """Stop watching."""
        self._handle.remove()
        self._batches.clear()


@torch.no_grad()
def compensate_(
    model: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Sequence[int]],
    *,
    tokens: Int[Tensor, "rows seq"],
    mask: Int[Tensor, "rows seq"],
) -> None:
    """Refit every projection that reads units which `kept` leaves out; call it before they are removed.

    `kept` holds indices into the units of `groups`. Modifies the frozen weights of `model`, not its adapters.
    Source: least squares on calibration activations, as in SlimGPT and OSSCAR (PAPER.md, section 3); layer after layer on the
    pruned model's own activations as in Frantar and Alistarh, SparseGPT (arXiv 2301.00774).
    """
    present = mask.flatten().bool()
    handles = []
    for group in groups:
        if len(kept[group.name]) == group.units:
            continue
        for span in consumers(group):
            hook = _Refit(model, group, span, kept[group.name], present)
            handles.append(find_module(model, span.module).register_forward_pre_hook(hook))
    try:
        with _evaluating(model):
            model(input_ids=tokens, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()


class _Refit:
    """Refits a projection to its own input, then hands on that input without the units that go."""

    def __init__(self, model: nn.Module, group: Group, span: Span, kept: Sequence[int], present: Tensor) -> None:
        self.projection, self.present = projection(model, span.module), present
        entries = kept_entries(self.projection.shape[1], [span], group.units, kept)
        self.stays = torch.zeros(self.projection.shape[1], dtype=torch.bool, device=present.device)
        self.stays[entries] = True

    def __call__(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = args[0].flatten(0, -2)[self.present]
        weight = self.projection.merged_rows(0, self.projection.shape[0])
        change = refit(z.to(weight.dtype), weight, self.stays, path=self.projection.path)
        base = self.projection.layer.weight
        assert isinstance(base, Tensor)
        if is_transposed(self.projection.layer):
            base[self.stays] += change.T.to(base.dtype)
        else:
            base[:, self.stays] += change.to(base.dtype)
        return (args[0] * self.stays.to(args[0].dtype), *args[1:])


def refit(
    z: Float[Tensor, "tokens in_"], weight: Float[Tensor, "out in_"], stays: Bool[Tensor, " in_"], *, path: str
) -> Float[Tensor, "out kept"]:
    """Return the change D of the kept columns that minimises sum |(W_K + D) z_K - W z|^2 + ridge |D|^2.

    D = W_R H_RK (H_KK + ridge I)^-1 with H = sum z z^T, R the columns that go, K those that stay.

    Raises:
        NumericsError: if an activation is NaN or infinite.
    """
    moments = z[:, stays].T @ z
    among, across = moments[:, stays], moments[:, ~stays]
    if not torch.isfinite(moments).all():
        raise NumericsError(f"{path!r}: an activation is NaN or infinite: lower --lr, or use --dtype float32")
    ridge = DAMPING * among.diagonal().mean().clamp_min(torch.finfo(z.dtype).tiny)
    among.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(among)
    return torch.cholesky_solve(across @ weight[:, ~stays].T, factor).T


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every module its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
