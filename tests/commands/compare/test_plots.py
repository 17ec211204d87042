"""What is drawn is what the cells say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from loraprune.commands.compare import plots

UNITS = {f"model.layers.{layer}.mlp": {"kind": "ffn", "dense": 8, "kept": 4} for layer in (0, 3, 11)}


def entry(name: str, ratio: float, **more: Any) -> dict[str, Any]:
    labels = {"criterion": name, "ratio": f"ratio {ratio}"}
    return {"recipe": f"{name}, ratio {ratio}", "labels": labels, "seed": 0, "key": f"{name}{ratio}", "job": "prune",
            "ratio_reached": ratio, "units": UNITS} | more  # fmt: skip


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the heat maps instead of drawing them."""
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(plots, "heat_maps", lambda panels, *_, **__: seen.append(panels))
    return seen


def test_scores_are_compared_layer_by_layer_at_the_smallest_removal(
    tmp_path: Path, drawn: list[dict[str, Any]]
) -> None:
    up = torch.arange(8.0)
    for key, first, second in (("a0.2", up, up), ("b0.2", up.exp(), -up), ("a0.5", up, up), ("b0.5", -up, up)):
        (tmp_path / key).mkdir()
        scores = {"model.layers.0.mlp": first.clone(), "model.layers.11.mlp": second.clone()}
        save_file(scores, tmp_path / key / "scores.safetensors")
    plots.agreement([entry(name, ratio) for ratio in (0.5, 0.2) for name in "ab"], tmp_path, tmp_path)
    assert drawn == [
        {"rank correlation of scores, FFN channels": {"a / b": {"0": pytest.approx(1.0), "11": pytest.approx(-1.0)}}}
    ]


def test_widths_are_the_mean_share_kept_in_each_layer(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    units = [{"model.layers.3.self_attn": {"kind": "attention", "dense": 8, "kept": kept}} for kept in (2, 4)]
    plots.widths([entry("a", 0.5, units=one) for one in units], tmp_path)
    assert drawn == [{"heads kept, %": {"a, ratio 0.5": {"3": 37.5}}}]


def test_layers_of_an_encoder_are_columns_of_one_map(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    """The FFN of a BERT layer is named like the layer: its number is not a kind of units."""
    units = {f"bert.encoder.layer.{layer}": {"kind": "ffn", "dense": 4, "kept": layer + 1} for layer in range(3)}
    plots.widths([entry("a", 0.5, units=units)], tmp_path)
    assert drawn == [{"FFN channels kept, %": {"a, ratio 0.5": {"0": 25.0, "1": 50.0, "2": 75.0}}}]


def test_a_heat_map_has_numbers_where_there_is_room_and_something_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    for layers in (4, 40):
        rows = {"one": {str(layer): layer / layers for layer in range(layers)}, "other": {"0": 1.0}}
        plots.heat_maps({"panel": rows}, tmp_path, "map", limits=(0.0, 1.0), colours="cividis", digits=2)
    few, many = (figure.axes[0] for figure in figures)
    assert [text.get_text() for text in few.texts] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert len(many.texts) == 0
    assert len(many.get_xticks()) < 20


@pytest.mark.parametrize(("largest", "is_wide"), [(6.5, False), (80.0, True)])
def test_an_axis_is_logarithmic_where_perplexities_lie_far_apart(
    largest: float, is_wide: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    done = [entry("a", 0.5, parameters={"dense": 10, "pruned": 5}, perplexity={"dense": 6.0, "pruned": largest})]
    mean = {"mean": largest, "deviation": None}
    recipe = {"labels": done[0]["labels"], "perplexity": mean, "parameters": 5.0, "job": "prune", "ratio_reached": 0.5}
    plots.perplexity({"a": recipe}, done, tmp_path, {})
    axes = figures[0].axes[0]
    assert axes.get_yscale() == ("log" if is_wide else "linear")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["dense", "a"]


def test_the_plot_says_what_it_shows_joins_the_dense_model_and_names_every_ratio_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    done = [entry("a", 0.5, parameters={"dense": 10e6, "pruned": 5e6}, perplexity={"dense": 6.0, "pruned": 7.0})]
    recipes = {
        f"{name}, ratio {ratio}": {
            "labels": {"criterion": name, "ratio": f"ratio {ratio}"}, "job": "prune", "ratio_reached": ratio,
            "perplexity": {"mean": 6.0 + ratio + place, "deviation": 0.1}, "parameters": 10e6 * (1 - ratio),
        }
        for place, name in enumerate("ab") for ratio in (0.2, 0.5)
    }  # fmt: skip
    tuned = {"labels": {"criterion": "tuned"}, "job": "finetune", "perplexity": {"mean": 5.0, "deviation": None}}
    plots.perplexity(recipes | {"tuned": tuned | {"parameters": 10e6, "ratio_reached": 0.0}}, done, tmp_path, {})
    axes = figures[0].axes[0]
    assert axes.get_title(loc="left").startswith("Perplexity of pruned models by size:")
    assert "sample deviation" in axes.get_title(loc="left")
    named = [(text.get_text(), *(round(float(each), 6) for each in text.xy)) for text in axes.texts]
    assert named == [("20 %", 8.0, 7.3), ("50 %", 5.0, 7.6)]  # above the bar of b, the higher one
    ends = {bar.get_label(): tuple(bar.lines[0].get_xydata()[-1]) for bar in axes.containers}
    dense = next(line for line in axes.lines if line.get_label() == "dense")
    assert ends["a"] == ends["b"] == tuple(dense.get_xydata()[0]) == (10.0, 6.0)
    assert ends["tuned"] == (10.0, 5.0)  # no line: nothing was removed


def test_scores_are_compared_with_the_references_layer_by_layer_and_step_by_step(
    tmp_path: Path, drawn: list[dict[str, Any]]
) -> None:
    up, gone = torch.arange(8.0), torch.tensor([float("nan")] * 4 + [0.0] * 4)
    for key, sign in (("a0.2", 1), ("b0.2", -1)):
        (tmp_path / key).mkdir()
        # At step 20 the units that agreed are gone, those left are in opposite orders.
        scores = {"10/model.layers.3.mlp": up.clone(), "20/model.layers.3.mlp": sign * up + gone}
        save_file(scores, tmp_path / key / "scores_history.safetensors")
    entries = [entry(name, 0.2) for name in "ab"]
    plots.agreement_by_step(entries, "a", tmp_path, tmp_path)
    expected = {"step 10": {"3": pytest.approx(1.0)}, "step 20": {"3": pytest.approx(-1.0)}}
    assert drawn == [{"b / a: rank correlation of scores, FFN channels": expected}]
    plots.agreement_by_step(entries, None, tmp_path, tmp_path)
    assert len(drawn) == 1
