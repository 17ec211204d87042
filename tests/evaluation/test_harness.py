"""Accuracy on tasks, computed by hand and by lm-eval on local files, and models side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from loraprune import cli
from loraprune.config.commands import ZERO_SHOT, EvaluateConfig
from loraprune.errors import ConfigError, DataError
from tests.cli.cases import refused
from tests.reporting.html.runs import write_run
from tests.samples import byte_tokenizer, save_tiny, tiny_llama, write_text

pytest.importorskip("lm_eval")
from loraprune.evaluation.harness import Answered, answer, open_tasks, side_by_side

PIQA = [
    {"goal": f"goal {n}", "sol1": "a " * (n % 3 + 1) + "x", "sol2": "b " * (n % 5 + 1) + "yy", "label": n % 2}
    for n in range(12)
]
ANATOMY = [{"question": f"question {n}?", "choices": [f"{c}{n}" for c in "wxyz"], "answer": n % 4} for n in range(8)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks")
    for name, rows in (("piqa-12", PIQA), ("mmlu_anatomy", ANATOMY)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    save_tiny(root / "model", max_position_embeddings=256)
    save_tiny(root / "other", max_position_embeddings=256, num_hidden_layers=1)
    write_text(root / "text.txt", 60)
    return root


def piqa_by_hand(model: Any) -> list[float]:
    """Score every choice by its log-likelihood a byte, from the definition of acc_norm."""
    tokenizer, right = byte_tokenizer(), []
    for row in PIQA:
        context = tokenizer(f"Question: {row['goal']}\nAnswer:")["input_ids"]
        scores = []
        for choice in (str(row["sol1"]), str(row["sol2"])):
            ids = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([context + ids])).logits[0].log_softmax(-1)
            total = sum(float(logits[len(context) - 1 + place, token]) for place, token in enumerate(ids))
            scores.append(total / len(choice))
        right.append(float(scores.index(max(scores)) == row["label"]))
    return right


def test_accuracy_is_that_of_a_computation_by_hand(root: Path) -> None:
    tasks = open_tasks(["piqa"], str(root))
    model = tiny_llama(max_position_embeddings=256)
    found = answer(tasks, model, byte_tokenizer(), batch=3, length=256, limit=None, shots=0)["piqa"]
    assert found.metric == "acc_norm"
    assert list(found.right) == piqa_by_hand(model)
    assert 0 < sum(found.right) < len(PIQA)
    few = answer(tasks, model, byte_tokenizer(), batch=3, length=256, limit=5, shots=0)["piqa"]
    assert few.right == found.right[:5]


def test_differences_are_paired_document_by_document() -> None:
    first, second = (1.0, 1.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
    row, other, average = side_by_side({name: {"t": Answered("acc", right), "u": Answered("acc", first)}
                                        for name, right in (("a", first), ("b", second))})  # fmt: skip
    assert row["models"]["a"] == {"value": 0.5, "standard_error": pytest.approx(math.sqrt(1 / 3) / 2)}
    assert row["difference"] == {"value": -0.25, "standard_error": pytest.approx(0.25)}  # unpaired it would be 0.38
    assert other["difference"] == {"value": 0.0, "standard_error": 0.0}
    assert average["task"] == "mean"
    assert average["models"]["b"]["value"] == pytest.approx((0.25 + 0.5) / 2)
    assert average["difference"] == {"value": -0.125, "standard_error": pytest.approx(0.125)}


def test_two_models_by_perplexity_and_tasks_and_the_folder_keeps_it(root: Path, tmp_path: Path, capsys: Any) -> None:
    folder = write_run(tmp_path / "run", judged=False)
    for file in (root / "model").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    arguments = ["evaluate", "--model", str(folder), "--against", str(root / "other"), "--device", "cpu", "--length", "[16, 32]",
                 "--data", str(root / "text.txt"), "--tasks", "piqa,mmlu_anatomy", "--task-data", str(root), "--limit", "6",
                 "--record"]  # fmt: skip
    assert cli.main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [entry["length"] for entry in values["measurements"]] == [16, 32]
    for entry in values["measurements"]:
        before, after = (entry["models"][str(name)] for name in (root / "other", folder))
        assert entry["difference"]["value"] == pytest.approx(after["nll"] - before["nll"], abs=1e-9)
        assert entry["difference"]["standard_error"] < before["standard_error"] + after["standard_error"]
        assert after["protocol"]["window_tokens"] == entry["length"]
    assert [(row["task"], row["metric"]) for row in values["tasks"]["rows"]] == [
        ("piqa", "acc_norm"),
        ("mmlu_anatomy", "acc"),
        ("mean", ""),
    ]
    assert [row["documents"] for row in values["tasks"]["rows"]] == [6, 6, 12]
    assert json.loads((folder / "evaluation.json").read_text()) == values
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "mmlu_anatomy" in page
    assert cli.main(arguments) == 0
    assert "paired" in capsys.readouterr().out


def test_a_group_asks_all_tasks_below_it_and_names_a_missing_file(root: Path) -> None:
    with pytest.raises(ConfigError, match="no file for 'mmlu_"):
        open_tasks(["mmlu_stem"], str(root))


@pytest.mark.parametrize(
    ("tasks", "words"),
    [("piqua", "did you mean 'piqa'"), ("arc_easy", "no file for 'arc_easy'; arc_easy.jsonl"), ("piqa,,", "a name is empty")],
)  # fmt: skip
def test_unknown_tasks_and_missing_files_are_one_line(
    tasks: str, words: str, root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(["evaluate", "--model", str(root / "model"), "--tasks", tasks, "--task-data", str(root)], capfd, words)


def test_without_files_and_without_a_hub_the_message_says_what_to_do() -> None:
    with pytest.raises(DataError, match="--task-data"):
        open_tasks(["piqa"], None)


def test_zero_shot_stands_for_the_seven_tasks_of_the_paper() -> None:
    assert EvaluateConfig(model="m", tasks="zero-shot").task_names() == list(ZERO_SHOT)
    assert EvaluateConfig(model="m", tasks="piqa,zero-shot").task_names()[0] == "piqa"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({}, "nothing to measure"), ({"data": "d", "task_data": "f"}, "give --tasks too"), ({"data": "d", "length": [8, 1]}, "--length 1"),
     ({"data": "d", "record": True}, "--record"), ({"tasks": "piqa", "limit": 0}, "--limit 0")],
)  # fmt: skip
def test_wrong_options_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EvaluateConfig(model="m", **changes)


def test_the_real_files_are_read_as_the_stock_tasks_do(shared: Path) -> None:
    folder = shared / "data" / "zero_shot"
    tasks = open_tasks(list(ZERO_SHOT), str(folder))
    found = answer(
        tasks, tiny_llama(max_position_embeddings=256), byte_tokenizer(), batch=8, length=256, limit=2, shots=0
    )
    assert {name: len(of.right) for name, of in found.items()} == dict.fromkeys(ZERO_SHOT, 2)
