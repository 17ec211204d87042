"""Families: what can be pruned in each kind of model; one function a family, configuration -> groups.

A family copies no forward pass and touches no weights; docs/add-a-family.md shows how to add one.
"""

from loraprune.families import (  # noqa: F401  (importing a family registers it)
    bart,
    bert,
    bloom,
    cohere,
    convnext,
    deberta,
    falcon,
    gemma,
    gpt2,
    gpt_neox,
    gptj,
    llama,
    modernbert,
    moe,
    olmo2,
    opt,
    phi,
    phi3,
    resnet,
    starcoder2,
    swin,
    t5,
    vit,
)
from loraprune.families.base import Family, families, find_groups, fitting_lengths, positions, register_family

__all__ = ["Family", "families", "find_groups", "fitting_lengths", "positions", "register_family"]
