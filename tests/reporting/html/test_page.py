"""The page holds everything it should and nothing that a name or a text could smuggle in."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.errors import CheckpointError, LoraPruneError
from loraprune.reporting.html import page
from loraprune.reporting.html.folder import parts, read_run
from loraprune.reporting.html.page import NAME, render, write_page
from tests.reporting.html.runs import HOSTILE, write_run

pytest.importorskip("matplotlib")
SAFE = {"xmlns", "xmlns:xlink"}


class Elements(HTMLParser):
    """Collects tags with their attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run") / "out")


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return render(read_run(folder))


def foreign(text: str) -> list[str]:
    """Return what an element of the page would fetch or run."""
    found = []
    for tag, attributes in Elements(text).tags:
        found += [tag] if tag in ("script", "link", "iframe", "object", "embed", "base", "form") else []
        for name, value in attributes.items():
            outside = name in ("src", "href", "xlink:href", "action") and not (value or "").startswith(
                ("#", "data:image/")
            )
            found += [f"{tag} {name}={value}"] if outside or name.startswith("on") else []
            found += [f"{tag} {name}={value}"] if "://" in (value or "") and name not in SAFE else []
    return found


def test_nothing_is_fetched_and_nothing_runs(text: str) -> None:
    assert foreign(text) == []
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_check_sees_what_would_run() -> None:
    assert len(foreign(HOSTILE)) >= 3
    assert foreign('<a href="https://example.org">x</a>')


def test_names_and_texts_are_shown_as_they_are(text: str) -> None:
    shown = "".join(Elements(text).words)
    assert shown.count(HOSTILE) >= 10  # title, heading, data, examples, tasks, columns, recipe, versions, protocol
    assert f"model: '{HOSTILE}'" in shown


@pytest.mark.parametrize(
    "words",
    ["37.5 %", "1.67×", "1.50×", "4 M → 2.5 M parameters", "0.5012 (asked 0.5)", "1 h 2 min", "65.43 ± 1.23", "+65.43 ± 1.23",
     "12.346", "wikitext-2/test.txt", "loraprune prune --config run.yaml", "The circled step"],
)  # fmt: skip
def test_the_figures_of_the_run_are_there(words: str, text: str) -> None:
    assert words in "".join(Elements(text).words)


def test_every_plot_is_there_once_and_ids_are_unique_or_the_same(text: str) -> None:
    titles = ["Size and speed", "Loss and ratio over steps", "Held-out perplexity over steps", "Kept heads by layer",
              "Kept FFN channels by layer", "Scores of heads", "Scores of FFN channels", "Tasks"]  # fmt: skip
    labels = [attributes.get("aria-label") for tag, attributes in Elements(text).tags if tag == "figure"]
    assert labels == titles
    assert text.count("<svg") == len(titles)
    elements = re.findall(r'<(\w+) id="([^"]+)"([^>]*)>', text)
    assert all(
        tag in ("path", "clipPath", "image") for tag, _, _ in elements
    )  # definitions, named by what they contain


def test_colours_of_the_plots_are_the_pages(text: str) -> None:
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
    assert "var(--ink)" in drawn
    assert "var(--c0)" in drawn
    assert not re.search(r"#0072b2|#1f2328|#dddddd", drawn)
    assert "prefers-color-scheme: dark" in text


def test_the_same_run_gives_the_same_page(folder: Path, text: str) -> None:
    assert render(read_run(folder)) == text


@pytest.mark.parametrize(
    "changes",
    [
        {"job": "finetune", "units": {}, "removals": [], "evaluations": [], "kept_step": None},
        {"sparsity": {"pattern": "2:4", "ratio_requested": 0.5, "ratio_reached": 0.5, "zeros": 5, "weights": 10}, "units": {}},
        {"curve": [], "removals": [], "evaluations": [], "examples": [], "ratio_requested": None},
        {"perplexity": {"dense": 10.0, "pruned": 9.0, "nll": {"dense": 2.3, "pruned": 2.2}, "tokens": 9, "protocol": {},
                        "standard_error": {"dense": None, "pruned": None}}},
        {"metric": "accuracy", "accuracy": {"dense": 0.912, "pruned": 0.883, "standard_error": {"dense": 0.01, "pruned": None},
                                            "rows": 872, "protocol": {"source": "reviews.csv"}},
         "evaluations": [{"step": 9, "accuracy": 0.9, "standard_error": 0.01, "ratio": 0.5}], "kept_step": 9},
    ],
)  # fmt: skip
def test_a_run_with_less_to_show_has_a_page_too(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_run(tmp_path / "out", judged=False, **changes)
    report = json.loads((folder / "report.json").read_text())
    del report["speed"]
    (folder / "report.json").write_text(json.dumps(report))
    shown = "".join(Elements(render(read_run(folder))).words)
    assert "How much faster?" not in shown
    assert ("How much better?" in shown) == (report["perplexity"]["pruned"] < 10)
    if report.get("metric") == "accuracy":
        assert "0.029" in shown  # by how much it is worse
        assert "0.912 ± 0.010 → 0.883 accuracy" in shown
        assert "protocol of the accuracy" in shown
        assert "Held-out accuracy over steps" in shown
        assert "perplexity" not in shown.lower()


def test_without_the_extra_one_line_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_page(folder)
    assert not (folder / NAME).exists()
    assert caplog.messages == ["report.html was not written: pip install 'loraprune[report]' adds what draws it"]


def test_a_plot_that_fails_costs_the_page_and_not_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(page, "render", lambda run: 1 / 0)
    write_page(folder)
    assert caplog.messages == ["report.html was not written: ZeroDivisionError: division by zero"]


def test_the_command_draws_page_and_plots_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "out")
    assert cli.main(["report", "--model", str(folder), "--plots", str(tmp_path / "plots"), "--json"]) == 0
    drawn = json.loads(capsys.readouterr().out)
    assert (folder / NAME).stat().st_size > 20_000
    names = {
        "size-and-speed",
        "training",
        "held-out",
        "kept-self_attn",
        "kept-mlp",
        "scores-self_attn",
        "scores-mlp",
        "tasks",
    }
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert sorted(drawn["plots"]) == sorted(map(str, (tmp_path / "plots").iterdir()))
    assert (tmp_path / "plots" / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_no_run_wrote_or_that_is_torn_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no report\.json"):
        read_run(tmp_path)
    torn = write_run(tmp_path / "torn")
    (torn / "scores.safetensors").write_bytes(b"torn")
    with pytest.raises(LoraPruneError, match="torn"):
        read_run(torn)


def test_rows_are_labelled_by_what_tells_their_paths_apart() -> None:
    assert parts(["model.layers.0.mlp", "model.layers.11.mlp"]) == {
        "mlp": {"0": "model.layers.0.mlp", "11": "model.layers.11.mlp"}
    }
    both = ["encoder.block.3.SelfAttention", "decoder.block.3.SelfAttention"]
    assert parts(both) == {"SelfAttention": {"encoder": both[0], "decoder": both[1]}}
    assert parts(["h.0.mlp"]) == {"mlp": {"mlp": "h.0.mlp"}}
