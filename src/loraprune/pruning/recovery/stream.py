"""The residual stream: how far it is from the one before a removal, and how much an error counts at each of its tokens."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraprune.groups import Stream
from loraprune.pruning.recovery.rows import Rows, rows_aside
from loraprune.pruning.recovery.trace import Trace


class TokenStream:
    """The residual stream up to some layer: its difference from the one before the removal, and its size."""

    def __init__(self, present: Bool[Tensor, " places"] | slice, rows: int, places: int) -> None:
        """Take which of the rows * positions hold a token."""
        self.present = present
        self.missing: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        """(tokens, hidden) what the layers so far had added to the stream before the removal"""
        every = torch.arange(rows * places)
        self._counted = (
            torch.where(present.cpu(), present.cpu().cumsum(0) - 1, -1) if isinstance(present, Tensor) else every
        )
        row_of_token = (every // places)[present.cpu() if isinstance(present, Tensor) else present]
        self.aside: Bool[Tensor, " tokens"] = rows_aside(rows)[row_of_token]
        """tokens kept aside: nothing is fitted to them, and fits are evaluated on them"""
        self._shape = rows, places

    @classmethod
    def of(cls, present: Bool[Tensor, " places"] | slice, rows: int, tokens: int) -> TokenStream:
        """Return the stream of so many rows and tokens at the bottom of a model."""
        return cls(present, rows, (len(present) if isinstance(present, Tensor) else tokens) // rows)

    def places(self) -> Int[Tensor, "rows seq"]:
        """Return the index of each row's tokens among all present ones, -1 for padding."""
        return self._counted.view(self._shape)

    def at(self, tokens: Int[Tensor, " some"]) -> TokenStream:
        """Return the stream at some tokens, to be passed on by itself."""
        found = copy.copy(self)
        found.missing, found.total = (
            each[tokens] if isinstance(each, Tensor) else each for each in (self.missing, self.total)
        )
        return found

    def pass_on(self, former: Float[Tensor, "tokens hidden"], mine: Float[Tensor, "tokens hidden"]) -> None:
        """Note what a projection added to the stream before the removal, and what it adds now."""
        self.missing = former + self.missing - mine
        self.total = former + self.total

    def weights(self, former: Float[Tensor, "tokens hidden"], *, residual: bool) -> Float[Tensor, "tokens 1"]:
        """Return the weight of an error at each token."""
        return token_weights(former + self.total if residual else former)


def token_weights(stream: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens 1"]:
    """Return the weight of an error at each token: it falls with the size of the stream that it is added to. Their mean is 1.

    Large models have massive activations: of SmolLM2's stream one token in a hundred holds up to 98 % of the energy, and plain least
    squares fits little else. The norm that reads the stream divides by its size, and so do the weights.
    """
    energy = stream.square().mean(1, keepdim=True)
    weights = 1 / (energy + energy.median()).clamp_min(torch.finfo(energy.dtype).tiny)
    return weights / weights.mean()


def token_streams(trace: Trace, rows: Rows) -> dict[Stream, TokenStream]:
    """Return every residual stream at the bottom of a model, for rows that a trace was taken of."""
    count = len(next(iter(rows.values())))
    return {name: TokenStream.of(trace.present[name], count, tokens) for name, tokens in trace.tokens.items()}
