"""Shapes in annotations are checked while the tests run: a tensor of another shape does not pass."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from loraprune.pruning.masking import norm_left


def test_a_tensor_of_another_shape_is_refused() -> None:
    x, left = torch.zeros(2, 4), torch.tensor([0, 2])
    assert norm_left(nn.LayerNorm(4), x, left).shape == x.shape
    with pytest.raises(TypeCheckError, match="left"):
        norm_left(nn.LayerNorm(4), x, left[None])
