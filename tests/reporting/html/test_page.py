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
from loraprune.reporting.amounts import call_time
from loraprune.reporting.html import figures, heat, page
from loraprune.reporting.html.folder import read_run
from loraprune.reporting.html.page import NAME, render, write_page
from loraprune.reporting.plotting import new_figure, styled
from tests.reporting.html.runs import HOSTILE, report, speed, write_run

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
    words = "".join(Elements(text).words)
    assert words.count(HOSTILE) >= 10  # title, heading, data, examples, tasks, columns, recipe, versions, protocol
    assert f"model: '{HOSTILE}'" in words


@pytest.mark.parametrize(
    "words",
    ["37.5 %", "1.67×", "1.50×", "4 M → 2.5 M parameters", "0.5012 (requested: 0.5)", "1 h 2 min", "65.43 ± 1.23", "+65.43 ± 1.23",
     "12.346", "wikitext-2/test.txt", "loraprune prune --config run.yaml", "The circle marks"],
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
    values = json.loads((folder / "report.json").read_text())
    del values["speed"]
    (folder / "report.json").write_text(json.dumps(values))
    words = shown(folder)
    assert "Speed" not in words
    assert ("0.90×" in words) == (values["perplexity"]["pruned"] < 10)
    if values.get("metric") == "accuracy":
        assert "−2.9 points" in words
        assert "0.912 ± 0.010 → 0.883; one point is 0.01" in words
        assert "protocol of the accuracy" in words
        assert "Held-out accuracy over steps" in words
        assert "perplexity" not in words.lower()


def test_without_the_extra_one_line_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_page(folder)
    assert not (folder / NAME).exists()
    assert caplog.messages == [
        "report.html was not written: install what draws it with pip install 'loraprune[report]'"
    ]


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
        "kept-heads",
        "kept-ffn-channels",
        "scores-heads",
        "scores-ffn-channels",
        "tasks",
    }
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("png", "svg")
    }
    assert sorted(drawn["plots"]) == sorted(map(str, (tmp_path / "plots").iterdir()))
    assert (tmp_path / "plots" / "tasks.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_no_run_wrote_or_that_is_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no report\.json"):
        read_run(tmp_path)
    torn = write_run(tmp_path / "torn")
    (torn / "scores.safetensors").write_bytes(b"torn")
    with pytest.raises(LoraPruneError, match="damaged"):
        read_run(torn)


def shown(folder: Path) -> str:
    return " ".join("".join(Elements(render(read_run(folder))).words).split())


def test_date_version_and_verdict_come_before_everything_else(text: str, tmp_path: Path) -> None:
    words = "".join(Elements(text).words)
    top = words[: words.index("Summary")]
    assert all(each in top for each in ("30 November 2026, 01:54 UTC", "loraprune 0.1.0", "train longer or cut less"))
    assert "usable up to 1.28 times" in top
    assert 'class="paper verdict warning"' in text
    assert "<code>loraprune benchmark</code>" in text
    early = shown(write_run(tmp_path / "early", finished=None, versions={}))
    assert "UTC" not in early
    assert "Verdict" in early


@pytest.mark.parametrize(
    ("pruned", "tone"), [(10.1, "good"), (15.0, "warning"), (160.0, "bad")]
)  # as many colours as there are answers
def test_a_ruined_model_never_looks_like_a_usable_one(pruned: float, tone: str, tmp_path: Path) -> None:
    figures = {**report()["perplexity"], "pruned": pruned}
    page = render(read_run(write_run(tmp_path / "out", perplexity=figures)))
    assert re.findall(r'verdict (\w+)"', page) == [tone]


def test_factors_are_those_of_the_times_beside_them(tmp_path: Path) -> None:
    """Samples of models that were timed one after the other are not pairs: their ratios had another median."""
    rows = {"dense": speed(0.0243, 0.2, 4_000_000), "pruned": speed(0.0209, 0.1, 2_500_000)}
    ratios = {"dense": {}, "pruned": {"prefill_speedup": {"1": 1.54}, "decode_speedup": 1.9, "expected_speedup": 1.6}}
    words = shown(write_run(tmp_path / "out", speed={**report()["speed"], "rows": rows, "ratios": ratios}))
    assert "1.16× as fast" in words
    assert "prefill: 24.3 ms → 20.9 ms" in words
    assert "generation: 2.00×, 80 → 160 tokens/s" in words
    assert "1.54" not in words
    assert "1.90×" not in words
    assert "overlap" not in words
    for name, least, most in (("dense", 0.02, 0.03), ("pruned", 0.018, 0.021)):
        rows[name]["prefill_seconds"]["1"] |= {"minimum": least, "maximum": most}
    noisy = shown(write_run(tmp_path / "noisy", speed={**report()["speed"], "rows": rows, "ratios": ratios}))
    assert "the times of the two overlap from run to run" in noisy


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0000123, "0.0123 ms"), (0.0243, "24.3 ms"), (0.9994, "999 ms"), (0.9999, "1 s"), (12.6, "12.6 s")],
)
def test_times_have_a_unit_that_suits_them(seconds: float, words: str) -> None:
    assert call_time(seconds) == words
    assert "e+" not in call_time(seconds)


def test_only_what_was_timed_is_called_generation(tmp_path: Path) -> None:
    rows = {name: {**speed(0.02, 0.2, 4), "decode_seconds": None, "decode_tokens_per_second": None} for name in "ab"}
    encoder = shown(write_run(tmp_path / "encoder", speed={**report()["speed"], "rows": rows}))
    decoder = shown(write_run(tmp_path / "decoder"))
    assert ("forward pass of 128 tokens" in encoder, "generation of 16" in encoder) == (True, False)
    assert ("prefill of 128 tokens, generation of 16" in decoder, "forward pass" in decoder) == (True, False)


@pytest.mark.parametrize(("text", "is_blank"), [("", True), (" \n\n ", True), ("x", False)])
def test_an_answer_without_visible_text_is_said_to_be_one(text: str, is_blank: bool, tmp_path: Path) -> None:
    examples = [{"prompt": "p", "dense": "d", "pruned": text}]
    page = render(read_run(write_run(tmp_path / "out", examples=examples)))
    assert ("No visible text" in page) == is_blank
    assert page.count('<blockquote class="by">') == (1 if is_blank else 2)


@pytest.mark.parametrize(
    ("text", "is_code"), [("def f(x):\n    return x", True), ("Once upon a time.\nThe end.", False)]
)
def test_indented_text_keeps_its_columns(text: str, is_code: bool, tmp_path: Path) -> None:
    examples = (
        [{"prompt": f"    {text}\n", "dense": text, "pruned": "x"}]
        if is_code
        else [{"prompt": text, "dense": "", "pruned": ""}]
    )
    page = render(read_run(write_run(tmp_path / "out", examples=examples)))
    assert ('class="paper code"' in page) == is_code
    assert ("<blockquote>    def f" in page) == is_code  # the indent of the first line stays


def ticks(axis: Any) -> list[float]:
    low, high = sorted(axis.get_view_interval())
    return [float(place) for place in axis.get_ticklocs() if low <= place <= high]


def test_steps_and_units_have_whole_ticks(tmp_path: Path) -> None:
    short = {
        "curve": [{"step": step, "loss": 3.0 - step, "lr": 1e-4} for step in (1, 2, 3)],
        "removals": [{"step": 2, "ratio": 0.5}], "steps": 3, "kept_step": None,
        "evaluations": [{"step": step, "perplexity": 12.0, "ratio": 0.5} for step in (1, 3)],
    }  # fmt: skip
    run = read_run(write_run(tmp_path / "out", **short))
    with styled():
        axes = {plot.name: plot.figure.axes for plot in figures.all_plots(run)}
        plain = new_figure(4.7, 3.1).subplots()
        plain.plot([1, 3], [0, 1])
    found = [axes["training"][-1].xaxis, axes["held-out"][0].xaxis, axes["kept-heads"][0].yaxis]
    assert all(place.is_integer() for axis in found for place in ticks(axis))
    assert all(len(ticks(axis)) >= 2 for axis in found)
    assert not all(place.is_integer() for place in ticks(plain.xaxis))  # what matplotlib chooses itself


def clipped(figure: Any) -> list[str]:
    """Return the labels of a figure's axes that reach beyond its edges."""
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    labels = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label) if label.get_text()]
    boxes = [(label.get_text(), label.get_window_extent()) for label in labels]
    return [text for text, box in boxes if min(box.x0, box.y0) < -1 or box.x1 > width + 1 or box.y1 > height + 1]


def test_labels_are_whole_even_in_a_model_of_one_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = {"model.layers.0.mlp": {"kind": "ffn", "dense": 48, "kept": 24}}
    run = read_run(write_run(tmp_path / "out", units=units))
    with styled():
        plots = [plot for plot in figures.all_plots(run) if plot.name.startswith(("kept", "scores"))]
        assert [clipped(plot.figure) for plot in plots] == [[], []]
        monkeypatch.setattr(heat, "HEIGHT", 0.0)  # then one layer gets 1.47 inches
        low = [plot for plot in figures.all_plots(run) if plot.name.startswith("scores")]
        low[0].figure.set_figheight(0.9)
        assert clipped(low[0].figure) == ["score (log10)"]


def test_dense_and_pruned_bars_differ_in_more_than_their_shade(folder: Path) -> None:
    with styled():
        plots = {plot.name: plot.figure for plot in figures.all_plots(read_run(folder))}
    for name in ("size-and-speed", "kept-heads"):
        reds, greens, blues = zip(*{bar.get_facecolor()[:3] for bar in plots[name].axes[0].patches}, strict=True)
        assert len(reds) == 2
        greys = [max(colour) - min(colour) < 0.1 for colour in zip(reds, greens, blues, strict=True)]
        assert sorted(greys) == [False, True]
