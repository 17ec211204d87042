"""One target only: a second one is refused, and what a single width leaves whole is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraprune.commands.parser import parse
from loraprune.config.commands import PlanConfig
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.training import PruneConfig
from loraprune.config.values import Fraction, WrongValueError, parse_bytes, read_value
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.functions.arguments import make_options
from loraprune.plan import Plan
from loraprune.pruning.removed import units_removed
from loraprune.pruning.target import find_target, report_kinds
from loraprune.runtime.workspace import new_folder
from tests.samples import tiny_llama

OTHERS: list[dict[str, Any]] = [
    {"parameters": "3M"},
    {"size": 0.8},
    {"file_size": "40kB"},
    {"memory": "40kB"},
    {"speedup": 1.5},
    {"heads": 4},
    {"ffn": 32},
    {"heads_ratio": 0.5, "ffn_ratio": 0.2},
    {"layers": 3},
]

RUN = {"model": "demo", "data": "stdlib", "output": "nowhere"}
"""what `prune` needs besides a target"""


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_a_ratio_beside_another_target_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--ratio 0\.3 --[a-z-]+ .*one target only"):
        PruneConfig(**RUN, ratio=0.3, **other)
    assert LoRAPruneConfig(**other)  # the control: alone
    assert LoRAPruneConfig(ratio=0.3)


@pytest.mark.parametrize(
    ("widths", "told"),
    [({"heads": 2}, "all FFN channels are kept"), ({"ffn": 32}, "all heads are kept"), ({"heads": 2, "ffn": 32}, None)],
)
def test_what_one_width_leaves_whole_is_said(
    widths: dict[str, int], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_llama().config
    with caplog.at_level(logging.INFO):
        report_kinds(config, find_groups(config), LoRAPruneConfig(**widths))  # type: ignore[arg-type]
    assert [record.message.partition(":")[0] for record in caplog.records] == ([told] if told else [])


def test_resuming_and_replacing_at_once_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.INFO), new_folder(tmp_path / "out", overwrite=True, resume=True):
        pass
    assert "is replaced at the end; this run starts again" in caplog.text


@pytest.mark.parametrize(("text", "value"), [("20%", 0.2), ("0.2", 0.2), (0.2, 0.2), ("12.5%", 0.125), (0, 0.0)])
def test_a_percentage_is_a_fraction_everywhere(text: str | float, value: float, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"ratio": text}))
    fixed = ["prune", "--model", "demo", "--data", "stdlib", "--output", str(tmp_path / "out")]
    for words in ([f"--ratio={text}"], ["--config", str(config)]):
        read = parse([*fixed, *words])[1]["ratio"]
        assert read == pytest.approx(value)
        assert type(read) is float
    assert make_options(PlanConfig, {"model": "demo", "ratio": text}).ratio == pytest.approx(value)


@pytest.mark.parametrize("text", ["%", "20 percent", "2%0", True])
def test_another_text_is_no_fraction(text: object) -> None:
    with pytest.raises(WrongValueError, match=r"a fraction or a percentage, such as 0\.2 or 20%"):
        read_value(Fraction, text)


@pytest.mark.parametrize(
    ("text", "count"),
    [("200MB", 200_000_000), ("1.5 GiB", 1_610_612_736), ("500kb", 500_000), ("1000", 1000), ("2g", 2_000_000_000)],
)
def test_bytes_have_units(text: str, count: int) -> None:
    assert parse_bytes(text, "memory") == count


@pytest.mark.parametrize("text", ["", "0", "much", "-4GB", "4 XB", "1,5GB", "0.2B"])
def test_other_texts_are_no_bytes(text: str) -> None:
    for option, name in (("memory", "memory"), ("file_size", "file-size")):
        with pytest.raises(ConfigError, match=rf"^--{name} {text}: a number of bytes such as 200MB"):
            PruneConfig(**RUN, **{option: text})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file_size": "1GB", "memory": "2GB"}, r"--file-size 1GB --memory 2GB: give one target only"),
        ({"speedup": 2.0, "ffn": 8}, r"--speedup 2\.0 --ffn 8: give one target only"),
        ({"speedup": 1.0}, r"--speedup 1\.0: a factor above 1"),
        ({"context": 0, "memory": "1GB"}, r"--context 0: at least 1"),
        ({"speedup": 2.0, "allocation": "global"}, r"--speedup 2\.0 --allocation global: .* use uniform or paper"),
        ({"memory": "1GB", "allocation": "global"}, r"--memory 1GB --allocation global: .* use uniform, measured"),
        ({"file_size": "1GB", "sparsity": "2:4"}, r"--sparsity 2:4 --file-size 1GB"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PruneConfig(**RUN, **options)
    last = list(options)[-1]
    assert LoRAPruneConfig(**{last: options[last] if options[last] != 1.0 else 1.1})  # the control: alone


def test_what_says_nothing_beside_a_ratio_is_said() -> None:
    idle = LoRAPruneConfig(context=64, timed="decoding").idle()
    assert [line.partition(" has no effect")[0] for line in idle] == ["--context 64", "--timed decoding"]
    assert not LoRAPruneConfig(context=64, memory="1GB").idle()  # the controls
    assert not LoRAPruneConfig(speedup=2.0, timed="decoding").idle()


@pytest.mark.parametrize("option", [{"memory": "1GB"}, {"speedup": 2.0}])
def test_rounds_are_refused_where_one_shape_is_fixed(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--rounds 2: --memory and --speedup fix the shape"):
        PruneConfig(**RUN, rounds=2, **option)
    assert PruneConfig(**RUN, rounds=2, file_size="1GB")  # the control


def test_a_size_is_a_share_of_all_parameters() -> None:
    model = tiny_llama()
    total = sum(parameter.numel() for parameter in model.parameters())
    target = find_target(model, LoRAPruneConfig(size=0.9, kinds="ffn", round=1))
    removed = target.ratio * target.space.budget.prunable
    assert removed == pytest.approx(0.1 * total, abs=1)
    same = find_target(model, LoRAPruneConfig(parameters=str(round(0.9 * total)), kinds="ffn", round=1))
    assert same.counts == target.counts != find_target(model, LoRAPruneConfig(size=0.8, kinds="ffn", round=1)).counts


def test_a_shape_far_from_the_ratio_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    for ratio, warns in ((0.5, True), (0.0, False)):  # nothing is removed
        config = LoRAPruneConfig(ratio=ratio)
        target = find_target(model, config)
        plan = Plan.full(target.groups)
        budget = target.space.budget
        units_removed(config, budget, budget.prunable, target.groups, plan, [], {}, None)
        assert (f"--ratio {ratio:g}: only 0.0000 is reached" in caplog.text) == warns
        caplog.clear()


def test_numbers_may_be_text_in_python_as_on_the_command_line() -> None:
    assert LoRAPruneConfig(ratio="20%", rank="4").ratio == 0.2  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"ratio='many': a fraction or a percentage, such as 0\.2 or 20% is needed"):
        LoRAPruneConfig(ratio="many")  # type: ignore[arg-type]
