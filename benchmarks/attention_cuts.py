"""Print the smallest part of its attention that each of some well-known models can lose and stay a stock checkpoint.

python benchmarks/attention_cuts.py

From shapes alone: what --kinds attention removes at least (key-value heads with their query heads), and what --kinds query does (query
heads, as many of each key-value head). The shapes are those of the models' config.json.
"""

from __future__ import annotations

from transformers import CONFIG_MAPPING, PreTrainedConfig

from loraprune.families import find_groups
from loraprune.families.query_heads import by_query_heads, query_heads
from loraprune.groups import Group
from loraprune.models.empty import empty_model
from loraprune.models.saving import storable_counts
from loraprune.pruning.target import measure_budget

SHAPES: dict[str, tuple[str, int, int, int, int]] = {
    "SmolLM2 135M": ("llama", 576, 9, 3, 64),
    "SmolLM2 360M": ("llama", 960, 15, 5, 64),
    "Llama 3.2 1B": ("llama", 2048, 32, 8, 64),
    "Llama 3 8B": ("llama", 4096, 32, 8, 128),
    "TinyLlama 1.1B": ("llama", 2048, 32, 4, 64),
    "Mistral 7B": ("mistral", 4096, 32, 8, 128),
    "Qwen2.5 0.5B": ("qwen2", 896, 14, 2, 64),
    "Qwen2.5 1.5B": ("qwen2", 1536, 12, 2, 128),
    "Qwen2.5 7B": ("qwen2", 3584, 28, 4, 128),
    "Qwen3 0.6B": ("qwen3", 1024, 16, 8, 128),
    "Gemma 2B": ("gemma", 2048, 8, 1, 256),
    "Gemma 2 2B": ("gemma2", 2304, 8, 4, 256),
    "Gemma 3 270M": ("gemma3_text", 640, 4, 1, 256),
    "Gemma 3 1B": ("gemma3_text", 1152, 4, 1, 256),
}
"""model -> model type, hidden size, query heads, key-value heads, size of a head"""


def config_of(name: str) -> PreTrainedConfig:
    """Return a configuration with the attention of a model, and little else."""
    kind, hidden, heads, key_values, head = SHAPES[name]
    config: PreTrainedConfig = CONFIG_MAPPING[kind](
        hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=key_values, head_dim=head, num_hidden_layers=1,
        intermediate_size=8, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return config


def least_removed(config: PreTrainedConfig, group: Group) -> int:
    """Return the smallest number of units without which a stock checkpoint of the same type or of its stand-in exists; 0 if none."""
    storable = storable_counts(config, [group])
    return next((gone for gone in range(1, group.units) if storable({group.name: group.units - gone})), 0)


def row(name: str) -> str:
    """Return the row of one model."""
    config = config_of(name)
    whole = next(group for group in find_groups(config) if group.kind == "attention")
    model = empty_model(config)
    total = measure_budget(model, (whole,)).prunable
    shares = []
    for group in (whole, by_query_heads(whole)):
        gone = least_removed(config, group)
        each = measure_budget(model, (group,)).unit_parameters[group.name]
        shares.append(f"{gone} of {group.units}, {100 * gone * each / total:.1f} %" if gone else "none")
    return f"| {name} | {query_heads(whole) * whole.units} and {whole.units} | {shares[0]} | {shares[1]} |"


def main() -> None:
    """Print the table."""
    print("| model | query and key-value heads | key-value heads | query heads (`--kinds query,ffn`) |")
    print("|---|---|---|---|")
    for name in SHAPES:
        print(row(name))


if __name__ == "__main__":
    main()
