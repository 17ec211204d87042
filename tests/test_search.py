"""--max-drop ends with the largest cut that was found within the limit, says why, and survives a crash between and within its runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from loraprune import pipeline
from loraprune.commands.parser import parse
from loraprune.commands.resume import resume
from loraprune.commands.tables.tries import tries as print_tries
from loraprune.config.commands import PlanConfig, ResumeConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError, PlanError
from loraprune.evaluation.apart import APART, CHOICE, halves
from loraprune.functions.arguments import make_options
from loraprune.reporting.card import model_card
from loraprune.reporting.report import Report
from loraprune.reporting.search import Try, why
from tests.pipeline.cases import check_loads_anywhere, prune_config, read_report
from tests.pipeline.test_resume import Stopped, results, stop_after
from tests.samples import byte_tokenizer, sentences, tiny_llama, write_text

LIMIT, TRIES = 0.25, 4
EVERYTHING = 1.0
"""a limit that every cut holds"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a text and a tiny model that was trained on such texts, so that cuts lose something."""
    root = tmp_path_factory.mktemp("inputs")
    model, tokenizer = tiny_llama().train(), byte_tokenizer()
    ids = [token for line in sentences(400, seed=1) for token in tokenizer(line)["input_ids"]]
    rows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(120):
        batch = rows[step * 8 % (len(rows) - 8) :][:8]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    write_text(root / "text.txt", 200)
    return root


def search_config(inputs: Path, output: Path, **changes: Any) -> PruneConfig:
    return prune_config(inputs, output, **{"max_drop": LIMIT, "tries": TRIES, "steps": 0, "rows": 16} | changes)


@contextmanager
def watched(*, stop_at: int | None = None) -> Iterator[list[str]]:
    """Note the folder of every run that begins, and end one as a crash would."""
    begun: list[str] = []
    real = pipeline.run

    def run(config: PruneConfig | FinetuneConfig) -> Report:
        begun.append(Path(config.output).name)
        if len(begun) == stop_at:
            raise Stopped
        return real(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run", run)
        yield begun


@pytest.fixture(scope="module")
def found(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Return the folder of a search, and its runs in order."""
    output = tmp_path_factory.mktemp("search") / "out"
    with watched() as begun:
        pipeline.prune(search_config(inputs, output))
    return output, begun


def test_the_largest_cut_that_holds_is_kept_and_every_try_is_reported(
    found: tuple[Path, list[str]], inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, begun = found
    report = read_report(output)
    entry, tries = report["search"], report["search"]["tries"]
    assert sorted(begun) == [f"{one['ratio']:g}" for one in tries]
    assert len(tries) <= TRIES
    held, broken = ([one for one in tries if one["holds"] is holds] for holds in (True, False))
    assert held  # else the limit would not be met by anything
    assert broken  # and this not say anything about it
    assert entry["ratio"] == max(one["ratio"] for one in held) < min(one["ratio"] for one in broken)
    assert all((one["drop"] <= LIMIT) is one["holds"] for one in tries)
    for one in tries:
        assert one["drop"] == pytest.approx(one["value"] / entry["reference_of_choice"] - 1)
    assert f"{100 * broken[0]['drop']:.2f} %" in entry["reason"]
    kept = {name.rpartition(".")[2]: group["kept"] for name, group in report["units"].items()}
    chosen = next(one for one in tries if one["ratio"] == entry["ratio"])
    assert chosen["shape"] == {"attention": kept["self_attn"], "ffn": kept["mlp"]}
    assert chosen["ratio_reached"] == report["ratio_reached"]
    assert len({json.dumps(one["shape"]) for one in tries}) == len(tries)
    assert report["target"] == {"max_drop": LIMIT}
    assert report["ratio_requested"] is None
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert yaml.safe_load((output / "run.yaml").read_text())["max_drop"] == LIMIT
    check_loads_anywhere(output)
    once = pipeline.prune(prune_config(inputs, tmp_path / "once", ratio=entry["ratio"], steps=0, rows=16))
    assert results(output) == results(tmp_path / "once")
    assert once.search is None
    again = Report.from_json(report)
    assert again.search is not None
    assert json.loads(json.dumps(again.values))["search"] == entry
    assert entry["reason"] in model_card(replace(again, folder="out"), output="out")
    print_tries(again.metric, again.search)
    printed = capsys.readouterr().out
    assert entry["reason"] in printed
    assert {"at", "most"} <= set(printed.split())
    assert "25 %" in printed
    assert f"ffn {kept['mlp']}" in printed


def test_the_figures_are_on_other_rows_than_those_that_chose(
    found: tuple[Path, list[str]], inputs: Path, tmp_path: Path
) -> None:
    report = read_report(found[0])
    figures, entry = report["perplexity"], report["search"]
    assert figures["protocol"][APART] is entry["apart"] is True
    assert figures["dense"] == entry["reference"]
    assert figures[CHOICE]["dense"] == entry["reference_of_choice"] != entry["reference"]
    assert entry["drop"] == pytest.approx(figures["pruned"] / figures["dense"] - 1)
    plain = pipeline.prune(prune_config(inputs, tmp_path / "plain", steps=0, rows=16)).values["perplexity"]
    assert CHOICE not in plain
    assert figures["protocol"]["rows"] == plain["protocol"]["rows"] - plain["protocol"]["rows"] // 2


@pytest.mark.parametrize("count", [2, 3, 10, 257])
def test_halves_share_no_row(count: int) -> None:
    choosing, others = halves(count, seed=0)
    assert sorted(choosing + others) == list(range(count))
    assert len(others) - len(choosing) in (0, 1)
    assert halves(1, seed=0) == ([0], [0])  # which is reported as such


@pytest.mark.parametrize("run", [1, 2])
def test_a_search_that_was_stopped_is_resumed_by_name(
    run: int, found: tuple[Path, list[str]], inputs: Path, tmp_path: Path
) -> None:
    output, uninterrupted = found
    with watched(stop_at=run + 1), pytest.raises(Stopped):
        pipeline.prune(search_config(inputs, tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    with watched() as begun:
        resume(ResumeConfig(output=str(tmp_path / "out")))
    assert begun == uninterrupted[run:]  # what was finished is not repeated
    assert results(tmp_path / "out") == results(output)
    assert read_report(tmp_path / "out")["search"] == read_report(output)["search"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_try_that_was_stopped_continues_from_its_checkpoint(
    found: tuple[Path, list[str]], inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped):
            pipeline.prune(search_config(inputs, tmp_path / "out", save=1))
    with watched() as begun, caplog.at_level(logging.INFO):
        resume(ResumeConfig(output=str(tmp_path / "out")))
    assert begun == found[1]
    assert caplog.text.count("continuing from") == 1
    assert results(tmp_path / "out") == results(found[0])


def test_where_even_the_smallest_cut_loses_too_much_the_tries_are_kept_for_a_larger_limit(
    inputs: Path, tmp_path: Path
) -> None:
    with (
        watched() as begun,
        pytest.raises(PlanError, match=r"--max-drop 0%: no cut .* the smallest one, ratio 0\.\d+ "),
    ):
        pipeline.prune(search_config(inputs, tmp_path / "out", max_drop=0.0, tries=1))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert not list((tmp_path / "out.partial").rglob("*.safetensors"))  # weights that nobody wants
    changed = search_config(inputs, tmp_path / "out", tries=1, max_drop=EVERYTHING, resume=True, batch=2)
    with pytest.raises(ConfigError, match=r"--batch 2 \(was 4\)"):
        pipeline.prune(changed)
    with watched() as repeated:
        pipeline.prune(replace(changed, batch=4))
    assert repeated == begun  # for its weights
    check_loads_anywhere(tmp_path / "out")


def test_where_every_cut_holds_the_largest_one_is_kept_and_said_to_be(inputs: Path, tmp_path: Path) -> None:
    with watched() as begun:
        report = pipeline.prune(search_config(inputs, tmp_path / "out", max_drop=EVERYTHING))
    assert report.search is not None
    assert begun[-1] == max(begun)
    assert "the largest cut that the shapes of this model allow" in report.search.reason
    with pytest.raises(PlanError, match="at most"):  # the control: more is impossible
        pipeline.prune(prune_config(inputs, tmp_path / "more", steps=0, ratio=0.99))


def test_with_training_the_dense_model_is_tuned_alike_first(inputs: Path, tmp_path: Path) -> None:
    with watched() as begun:
        report = pipeline.prune(search_config(inputs, tmp_path / "out", steps=3, rows=None, max_drop=EVERYTHING))
    assert begun[0] == "dense"
    assert report.search is not None
    assert report.search.tuned
    untuned = report.quality.others[CHOICE]["dense"]
    assert report.search.reference_of_choice != untuned
    assert report.training.steps == 3


def test_the_reason_counts_the_ratios_that_were_not_tried() -> None:
    tries = [
        Try(0.1, 0.1, 90, {"ffn": 9}, 2.0, 0.04, holds=True), Try(0.2, 0.2, 80, {"ffn": 8}, 2.2, 0.09, holds=False)
    ]  # fmt: skip
    rungs = [0.1, 0.15, 0.2]
    assert why(tries, tries[0], rungs, reference="x").endswith(
        "(1 ratios between the two were not tried: give more --tries)"
    )
    assert why(tries, tries[0], [0.1, 0.2], reference="x").endswith("ratio 0.2 loses 9.00 %")
    assert "no larger cut was tried" in why(tries[:1], tries[0], rungs, reference="x")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 0.3}, r"--ratio 0\.3 --max-drop 0\.05: give one target only"),
        ({"size": 0.8}, r"--size 0\.8 --max-drop 0\.05: give one target only"),
        ({"heads": 4}, r"--heads 4 --max-drop 0\.05: give one target only"),
        ({"sparsity": "2:4"}, "--max-drop 5% --sparsity 2:4"),
        ({"vocabulary": "data"}, "--max-drop 5% --vocabulary data: .*cut it first"),
        ({"rounds": 2}, "--max-drop 5% --rounds 2"),
        ({"patience": 2, "eval_every": 1}, "--max-drop 5% --patience 2"),
        ({"max_drop": -0.1}, r"--max-drop -0\.1: a fraction from 0 to 1"),
        ({"max_drop": 2.0}, r"--max-drop 2\.0: a fraction from 0 to 1"),
        ({"tries": 0}, "--tries 0: at least 1"),
    ],
)
def test_options_that_make_no_sense_with_a_limit_are_refused(changes: dict[str, Any], words: str) -> None:
    fixed: dict[str, Any] = {"model": "demo", "data": "stdlib", "output": "somewhere", "max_drop": 0.05}
    assert PruneConfig(**fixed).idle() == []  # the control
    with pytest.raises(ConfigError, match=words):
        PruneConfig(**fixed | changes)


def test_a_limit_is_read_everywhere_and_plan_cannot_know() -> None:
    named: dict[str, Any] = {"model": "demo", "data": "stdlib", "output": "somewhere"}
    assert make_options(PruneConfig, named | {"max_drop": "5%", "ratio": PruneConfig.ratio}).max_drop == 0.05
    words = ["prune", *(f"--{name}={value}" for name, value in named.items()), "--max-drop", "5%"]
    assert parse(words)[1]["max_drop"] == 0.05
    with pytest.raises(ConfigError, match=r"--ratio 0\.5 --max-drop 0\.05: give one target only"):
        parse([*words, "--ratio", "0.5"])
    with pytest.raises(ConfigError, match="--max-drop 5%: `plan` measures nothing"):
        PlanConfig(model="demo", max_drop=0.05)
    assert PruneConfig(**named, tries=3).idle() == [
        "--tries 3 has no effect: it counts the runs of a search; give --max-drop"
    ]
