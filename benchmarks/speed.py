"""Is the pruned model as much faster as its removed MACs promise? Dense and pruned in turns, batch 1 and 16.

    python benchmarks/speed.py

A random Llama cut to 20 % and 50 %: speed does not depend on which units stay.
"""

from __future__ import annotations

import argparse
import copy

import torch
from helpers import common
from helpers.common import SHAPE
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.evaluation.benchmark import compare_speed
from loraprune.families import find_groups
from loraprune.pruning.allocation.uniform import uniform_counts
from loraprune.pruning.surgery import slice_
from loraprune.pruning.target import make_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    groups = find_groups(config)
    dense = LlamaForCausalLM(config).eval()
    models = {"dense": dense}
    for ratio in (0.2, 0.5):
        space = make_space(dense, groups, LoRAPruneConfig(ratio=ratio))
        counts = uniform_counts(space, ratio)
        models[f"ratio {ratio}"] = copy.deepcopy(dense)
        slice_(models[f"ratio {ratio}"], groups, {name: range(count) for name, count in counts.items()})
    compared = compare_speed(models, batches=(1, 16), length=options.length, repeats=options.repeats)
    for name, ratios in compared.ratios.items():
        print(
            name,
            "promised",
            round(ratios.expected_speedup, 3),
            "measured",
            ratios.prefill_speedup,
            "achieved",
            ratios.achieved,
        )
    common.write("speed", {"shape": SHAPE, "options": vars(options), "comparison": compared.to_json()})


if __name__ == "__main__":
    main()
