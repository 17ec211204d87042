"""What can be pruned in each kind of model: one function a family, configuration -> groups.

A family copies no forward pass and touches no weights; docs/add-a-family.md shows how to add one.
"""

from loraprune.families import bart, convnext, gemma, llama, olmo2, phi3, resnet, swin, t5, vit  # noqa: F401  (importing a family registers it)
from loraprune.families.base import Family, families, find_groups, positions, register_family

__all__ = ["Family", "families", "find_groups", "positions", "register_family"]
