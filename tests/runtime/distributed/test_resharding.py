"""Processes among which FSDP2 shares a model cut it while it trains, one block at a time, as one process does that holds it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PrinterCallback, TrainerCallback

from loraprune import LoRAPruneCallback
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import base_model
from loraprune.models.compat import enable_checkpointing
from loraprune.pruning import sharded
from loraprune.runtime import launch
from loraprune.runtime.processes import joined
from loraprune.runtime.resharding import Blocks
from loraprune.runtime.sharding import gather_tensor, is_shard, is_sharded, own_shard
from loraprune.training.guarded_trainer import GuardedTrainer
from tests.fitting import Rows, adapted, arguments, config
from tests.runtime.distributed.processes import FSDP2, command, run
from tests.tiny import tiny_model

STEPS = 8
ROWS = 8
"""rows of a step, of all processes together"""
COUNTS: Mapping[int, dict[str, Any]] = {2: {"accumulate": 2}, 4: {"checkpointing": True}}
"""number of processes -> how they take a step, other than one process does"""
CLOSE = 1e-3
"""by how much a tensor may differ, relative to its largest value: sums are rounded differently, and AdamW divides by their size"""


class Sizes(TrainerCallback):
    """Notes the ratio reached, and the bytes of this process's shards of parameters and moments, after every step."""

    def __init__(self, pruning: LoRAPruneCallback) -> None:
        self.pruning = pruning
        self.ratios: list[float] = []
        self.bytes: list[tuple[int, int]] = []

    def on_step_end(self, *arguments: Any, model: nn.Module, optimizer: Any, **more: Any) -> None:
        moments = [each for state in optimizer.state.values() for each in state.values()]
        assert self.pruning.pruner is not None
        self.ratios.append(self.pruning.pruner.ratio())
        self.bytes.append((held(model.parameters()), held(moments)))


def held(tensors: Any) -> int:
    """Return the bytes that this process has allocated for tensors."""
    return sum(own_shard(each.detach()).untyped_storage().nbytes() for each in tensors)


def watch_gathering(monkeypatch: pytest.MonkeyPatch, found: list[int]) -> None:
    """Note at every cut of a sharded model how many of its blocks are whole."""
    real = sharded.slice_

    def noting(model: nn.Module, groups: Sequence[Group], *rest: Any, **more: Any) -> tuple[Group, ...]:
        blocks = [each for each in base_model(model).modules() if isinstance(each, FSDPModule)]
        found.append(sum(not is_shard(next(block.parameters())) for block in blocks))
        return real(model, groups, *rest, **more)

    monkeypatch.setattr(sharded, "slice_", noting)


def trained(
    folder: Path, *, batch: int, accumulate: int = 1, checkpointing: bool = False, **changes: Any
) -> dict[str, Tensor]:
    """Return the plan, the weights, the optimiser's state and the sizes of a short run, gathered; `batch` rows a step."""
    settings = config(interval=2, warmup=0.2, **changes)
    model, callback, whole = adapted(settings), LoRAPruneCallback(settings, guarded=True), list[int]()
    sizes = Sizes(callback)
    if checkpointing:
        enable_checkpointing(model)
    args = arguments(
        folder, steps=STEPS, per_device_train_batch_size=batch // accumulate, gradient_accumulation_steps=accumulate,
        logging_steps=1,
    )  # fmt: skip
    trainer = GuardedTrainer(
        model=model, args=args, train_dataset=Rows(), callbacks=[callback, sizes], guard=callback.guard
    )
    trainer.remove_callback(PrinterCallback)
    if launch.is_sharded():
        callback.prepare(model)
    with pytest.MonkeyPatch.context() as monkeypatch:
        watch_gathering(monkeypatch, whole)
        trainer.train()
    assert is_sharded(model) == launch.is_sharded()
    assert callback.pruner is not None
    found = {f"kept/{name}": torch.tensor(kept) for name, kept in callback.pruner.plan.kept.items()}
    found["losses"] = torch.tensor([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    for name, parameter in model.named_parameters():
        found[f"weight/{name}"] = gather_tensor(parameter.detach())
        for moment, value in trainer.optimizer.state.get(parameter, {}).items():
            found[f"optimiser/{moment}/{name}"] = gather_tensor(value)
    assert len(callback.history) == 4
    return found | {
        "bytes": torch.tensor(sizes.bytes), "ratios": torch.tensor(sizes.ratios), "whole": torch.tensor(whole),
    }  # fmt: skip


def together(folder: Path, count: int, **changes: Any) -> list[dict[str, Tensor]]:
    """Return what each process of several finds with FSDP2."""

    def work(rank: int) -> int:
        with joined("prune", "cpu"):
            found = trained(folder, batch=ROWS // count, **changes)
            save_file({name: each.contiguous() for name, each in found.items()}, folder / f"{rank}.safetensors")
        return 0

    ended = run(work, folder, count=count, launcher=FSDP2)
    assert ended.codes == [0] * count, ended.stderr
    return [load_file(folder / f"{rank}.safetensors") for rank in range(count)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    return trained(tmp_path_factory.mktemp("alone"), batch=ROWS)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, list[dict[str, Tensor]]]:
    return {count: together(tmp_path_factory.mktemp(str(count)), count, **how) for count, how in COUNTS.items()}


def differences(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], part: str) -> float:
    """Return the largest difference, relative to the largest value of its tensor."""
    names = sorted(name for name in mine if name.startswith(part))
    assert names == sorted(name for name in theirs if name.startswith(part)) != []
    assert {name: mine[name].shape for name in names} == {name: theirs[name].shape for name in names}
    pairs = [(mine[name].float(), theirs[name].float()) for name in names]
    return max(((one - other).abs().max() / one.abs().max().clamp_min(1e-9)).item() for one, other in pairs)


@pytest.mark.parametrize("count", COUNTS)
def test_shards_that_are_cut_train_as_one_process_does(
    count: int, alone: Mapping[str, Tensor], several: Mapping[int, list[dict[str, Tensor]]]
) -> None:
    for found in several[count]:
        assert differences(dict(alone), found, "kept/") == 0
        assert differences(dict(alone), found, "weight/") < CLOSE
        assert differences(dict(alone), found, "optimiser/") < CLOSE
    losses = torch.stack([found["losses"] for found in several[count]])
    assert (losses - alone["losses"]).abs().max() < CLOSE * alone["losses"].max()


@pytest.mark.parametrize("count", COUNTS)
def test_shards_and_moments_lose_their_bytes_at_every_removal(
    count: int, several: Mapping[int, list[dict[str, Tensor]]]
) -> None:
    parameters, moments = torch.stack([found["bytes"] for found in several[count]]).sum(0).unbind(1)
    removals = several[count][0]["ratios"].diff() > 0
    assert removals.sum() == 3
    assert parameters.diff().sign().tolist() == moments.diff().sign().tolist() == (-removals.int()).tolist()
    assert parameters[-1] < 0.8 * parameters[0]
    assert moments[-1] < 0.8 * moments[0]


@pytest.mark.parametrize("count", COUNTS)
def test_no_more_than_one_block_is_whole(count: int, several: Mapping[int, list[dict[str, Tensor]]]) -> None:
    for found in several[count]:
        assert found["whole"].tolist() == [1] * len(found["whole"]) != []


def test_masked_shards_keep_their_bytes_and_lead_to_the_same_plan(alone: Mapping[str, Tensor], tmp_path: Path) -> None:
    for found in together(tmp_path, 2, shrink=False):
        assert differences(dict(alone), found, "kept/") == 0
        assert all(len(sizes.unique()) == 1 for sizes in found["bytes"].unbind(1))
        assert found["whole"].tolist() == []


@pytest.mark.parametrize("policy", ["NO_WRAP", None])
def test_a_policy_that_gathers_the_whole_model_masks_and_says_so(
    policy: str | None, given: Path, tmp_path: Path
) -> None:
    arguments = [
        "prune", "--model", str(given / "model"), "--data", str(given / "text.txt"), "--output", str(tmp_path / "out"), "--steps", "4",
        "--batch", "2", "--length", "32", "--rank", "4", "--device", "cpu", "--html", "false",
    ]  # fmt: skip
    launcher = {name: value for name, value in FSDP2.items() if name != launch.POLICY}
    ended = run(command(arguments), tmp_path, launcher=launcher | ({launch.POLICY: policy} if policy else {}))
    assert ended.codes == [0, 0], ended.stderr
    said = [line for line in ended.stderr[0].splitlines() if "masked during training" in line]
    assert len(said) == (1 if policy else 0)
    assert all(f"with --fsdp_auto_wrap_policy {policy} shards keep their shapes" in line for line in said)


@pytest.mark.parametrize(
    ("variable", "value", "option"),
    [
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "--fsdp_auto_wrap_policy SIZE_BASED_WRAP"),
        ("FSDP_OFFLOAD_PARAMS", "true", "--fsdp_offload_params"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "--fsdp_activation_checkpointing"),
        ("PARALLELISM_CONFIG_DP_REPLICATE_SIZE", "2", "--parallelism_config_dp_replicate_size"),
    ],
)
def test_launches_whose_shards_keep_their_shapes_are_named(
    variable: str, value: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    groups = find_groups(model.config)
    assert sharded.why_masked(groups, Blocks(model)) is None
    monkeypatch.setenv(variable, value)
    assert sharded.why_masked(groups, Blocks(model)) == f"with {option} shards keep their shapes"


def test_units_outside_of_all_blocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    groups = find_groups(model.config)
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaMLP")
    assert sharded.why_masked(groups, Blocks(model)) == "model.layers.0.self_attn is not inside a single block"
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "NoSuchLayer")
    assert sharded.why_masked(groups, Blocks(model)) == "the model does not say what its blocks are"
