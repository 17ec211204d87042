"""LoRA's factors of one projection with their gradients: the kernels' inputs beside the weight."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """LoRA of one projection, W = W0 + scaling * B A, and the gradients of A and B."""

    a: Float[Tensor, "rank in_"]
    b: Float[Tensor, "out rank"]
    grad_a: Float[Tensor, "rank in_"]
    grad_b: Float[Tensor, "out rank"]
    scaling: float

    def tensors(
        self,
    ) -> tuple[
        Float[Tensor, "rank in_"], Float[Tensor, "out rank"], Float[Tensor, "rank in_"], Float[Tensor, "out rank"]
    ]:
        """Return A, B and their gradients."""
        return self.a, self.b, self.grad_a, self.grad_b
