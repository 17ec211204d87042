"""Gemma 1 to 3 (text): Llama's projections; the additional norms act on the residual stream or on single heads."""

from __future__ import annotations

from loraprune.families.base import register_family
from loraprune.families.llama import decoder

register_family("gemma", "gemma2", "gemma3_text")(decoder)
