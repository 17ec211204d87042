"""A folder that 0.1 wrote before its modules moved into packages still loads: weights, plan, scores and report."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import loraprune
from loraprune.models.adapters import count_parameters
from loraprune.plan import Plan
from loraprune.reporting.report import read_report

FOLDER = Path(__file__).parent / "saved_by_0_1"
"""a tiny Llama whose layers differ in width; its tokenizer and its copy of modeling_loraprune.py are left out"""
LOGITS = [-0.050311651080846786, -0.06923729926347733, -0.06784537434577942, 0.04405955225229263, 0.011636996641755104,
          -0.04096021503210068, 0.013574126176536083, -0.05153821408748627]  # fmt: skip
"""the first ones of the last of tokens 3 to 14, by the version that wrote the folder"""


def test_the_model_gives_the_logits_that_it_gave() -> None:
    model = loraprune.from_pretrained(FOLDER).eval()
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        found = model(input_ids=ids).logits[0, -1, : len(LOGITS)]
        model.get_parameter("model.layers.1.mlp.down_proj.weight").neg_()
        wrong = model(input_ids=ids).logits[0, -1, : len(LOGITS)]  # the control
    assert torch.allclose(found, torch.tensor(LOGITS), atol=1e-6)
    assert not torch.allclose(wrong, torch.tensor(LOGITS), atol=1e-6)


def test_plan_scores_and_report_are_read() -> None:
    plan = Plan.read(FOLDER)
    assert plan.counts() == json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))["loraprune"]["units"]
    assert {name: len(scores) for name, scores in load_file(FOLDER / "scores.safetensors").items()} == plan.units
    report = read_report(FOLDER)
    assert report.plan == plan
    assert report.parameters == (13136, count_parameters(loraprune.from_pretrained(FOLDER)))
    assert report.removed is not None
    assert report.removed.ratio_reached == 0.5
    assert report.quality.dense == 260.78765293900767
