"""One target only: a second one is refused, and what a single width leaves whole is said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.pruning.target import report_kinds
from loraprune.runtime.workspace import new_folder
from tests.samples import tiny_llama

OTHERS: list[dict[str, Any]] = [{"parameters": "3M"}, {"heads": 4}, {"ffn": 32}, {"heads_ratio": 0.5, "ffn_ratio": 0.2}]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
def test_a_ratio_beside_another_target_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"--ratio 0\.3 --[a-z-]+ .*one target only"):
        LoRAPruneConfig(ratio=0.3, **other)
    assert LoRAPruneConfig(**other)  # the control: alone
    assert LoRAPruneConfig(ratio=0.3)


@pytest.mark.parametrize(
    ("widths", "told"),
    [({"heads": 2}, "all FFN channels stay"), ({"ffn": 32}, "all heads stay"), ({"heads": 2, "ffn": 32}, None)],
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
    assert "is replaced at the end; this run starts anew" in caplog.text
