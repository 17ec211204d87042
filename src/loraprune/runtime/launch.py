"""Read the environment variables of a launcher (torchrun, `accelerate launch`) that starts several processes for one command.

Knows nothing about torch, so that a command line is checked at once.
"""

from __future__ import annotations

import os

from loraprune.errors import ConfigError

TRAINING = ("prune", "finetune", "resume")
"""commands that several processes share; any other would write the same files twice"""
DEEPSPEED = (
    "DeepSpeed frees gradients before units can be scored: launch with torchrun, or with "
    "accelerate launch --multi_gpu or --use_fsdp --fsdp_version 2"
)
RAM_EFFICIENT = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""with it transformers reads weights only in the first process; here each one checks and scores the weights it has read"""
POLICY = "FSDP_AUTO_WRAP_POLICY"
BY_BLOCK = "TRANSFORMER_BASED_WRAP"
"""the policy by which FSDP gathers one block at a time"""


def is_launched() -> bool:
    """Return whether a launcher started this process, if only a single one."""
    return "LOCAL_RANK" in os.environ


def number() -> int:
    """Return which process this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Return whether this process writes and prints."""
    return number() == 0


def is_sharded() -> bool:
    """Return whether the launcher asks for FSDP, where each process holds a part of every parameter."""
    return _flag("ACCELERATE_USE_FSDP")


def names_policy() -> bool:
    """Return whether the launcher says which modules FSDP gathers together."""
    return POLICY in os.environ


def named_blocks() -> list[str]:
    """Return the classes that the launcher names as blocks of the model; none if that is left to the model."""
    return list(filter(None, os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "").split(",")))


def why_shards_stay() -> str | None:
    """Return the option of the launcher with which FSDP's shards keep their shapes; None if blocks can be sharded again."""
    policy = os.environ.get(POLICY, BY_BLOCK)
    if policy.upper() != BY_BLOCK:
        return f"--fsdp_auto_wrap_policy {policy}"
    for option in ("offload_params", "activation_checkpointing"):
        if _flag(f"FSDP_{option.upper()}"):
            return f"--fsdp_{option}"
    for size in ("dp_replicate", "tp", "cp", "sp"):
        if os.environ.get(f"PARALLELISM_CONFIG_{size.upper()}_SIZE", "1") != "1":
            return f"--parallelism_config_{size}_size"
    return None


def uses_deepspeed() -> bool:
    """Return whether the launcher asks for DeepSpeed."""
    return _flag("ACCELERATE_USE_DEEPSPEED")


def check_launch(command: str) -> None:
    """Refuse a launch that is not supported; corrects a setting of FSDP.

    Raises:
        ConfigError: for DeepSpeed, FSDP 1, FSDP in a single process, and commands that one process carries out.
    """
    if uses_deepspeed():
        raise ConfigError(DEEPSPEED)
    if count() > 1 and command not in TRAINING:
        raise ConfigError(f"{count()} processes: {command} runs in one process; start it without a launcher")
    if is_sharded():
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError(f"FSDP {version}: only version 2 is supported; give --fsdp_version 2")
        if count() == 1:
            raise ConfigError(
                "FSDP in one process shards nothing: give --num_processes 2 or more, or leave --use_fsdp out"
            )
        os.environ[RAM_EFFICIENT] = "false"


def _flag(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
