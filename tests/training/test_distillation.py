"""The dense model as a teacher: what it says, from a copy or from disk, and a loss that is least where both agree."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from loraprune.data import Collator
from loraprune.evaluation.tasks.causal_lm import predictions
from loraprune.families import find_groups
from loraprune.models.adapters import linear_paths
from loraprune.models.teacher_logits import TeacherLogits, teacher_logits
from loraprune.training.distillation import DistillingTrainer, NumberedCollator, NumberedRows
from loraprune.training.guard import StepGuard
from loraprune.training.imitation import imitation_loss
from loraprune.training.teachers import CachedTeacher, CopyTeacher, choose_teacher
from tests.fitting import arguments
from tests.samples import byte_tokenizer, documents, tiny_llama


def text_rows(count: int = 12):
    from loraprune.data.load import load_rows

    path = Path("rows.txt")
    path.write_text("\n".join(documents(count * 4)), encoding="utf-8")
    return load_rows(str(path), byte_tokenizer(), length=24)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def batch(places: list[int]) -> dict[str, torch.Tensor]:
    rows = NumberedRows(text_rows())
    return NumberedCollator(Collator(2))([rows[place] for place in places])


def test_the_loss_is_the_divergence_where_all_tokens_are_named() -> None:
    """With every token but one named, the bin of all others is that one, and the divergence is exact."""
    draw = torch.Generator().manual_seed(0)
    theirs, ours = (torch.randn(2, 5, 9, generator=draw).log_softmax(-1) for _ in range(2))
    labels = torch.tensor([[1, 2, 3, -100, 4], [-100, 1, -100, 2, 3]])
    targets = TeacherLogits(*theirs.topk(8, dim=-1))
    learned = labels[:, 1:] != -100
    expected = functional.kl_div(ours[:, :-1][learned], theirs[:, :-1][learned], reduction="sum", log_target=True)
    torch.testing.assert_close(imitation_loss(ours, targets, labels, predictions), expected, rtol=1e-4, atol=1e-5)
    assert imitation_loss(theirs, targets, labels, predictions).item() == pytest.approx(0.0, abs=1e-4)
    everything = functional.kl_div(ours[:, :-1], theirs[:, :-1], reduction="sum", log_target=True)
    assert not torch.isclose(expected, everything)  # the control: prompts and padding are left out


def test_few_named_tokens_give_a_bound_from_below() -> None:
    draw = torch.Generator().manual_seed(1)
    theirs, ours = (torch.randn(2, 5, 40, generator=draw).log_softmax(-1) for _ in range(2))
    labels = torch.ones(2, 5, dtype=torch.long)
    whole = imitation_loss(ours, TeacherLogits(*theirs.topk(39, dim=-1)), labels, predictions)
    some = imitation_loss(ours, TeacherLogits(*theirs.topk(5, dim=-1)), labels, predictions)
    assert 0 < some < whole


def test_the_cache_says_what_the_copy_says(tmp_path: Path) -> None:
    model, rows, collator = tiny_llama(), text_rows(), Collator(2)
    cached, copied = (
        CachedTeacher(model, rows, collator, batch=5, folder=tmp_path / "teacher"),
        CopyTeacher(copy.deepcopy(model)),
    )
    for places in ([0, 3], [len(rows) - 1, 1, 7]):
        one, other = (teacher.targets(batch(places)) for teacher in (cached, copied))
        torch.testing.assert_close(one.log_probabilities, other.log_probabilities, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(one.tokens, other.tokens)
    wrong = cached.targets(batch([4, 1]))
    assert not torch.equal(wrong.tokens[0], cached.targets(batch([0, 1])).tokens[0])


def test_the_choice_of_teacher_follows_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    assert choose_teacher("auto", model) == "copy"
    layers = linear_paths(find_groups(model.config))
    taken = sum(p.numel() * p.element_size() for p in model.parameters())
    monkeypatch.setattr("loraprune.training.teachers.free_memory_bytes", lambda _: 3 * (taken - 1))
    assert choose_teacher("auto", model, quantisable=layers) == "8bit"
    assert choose_teacher("auto", model) == "cache"
    monkeypatch.setattr("loraprune.training.teachers.free_memory_bytes", lambda _: 1000)
    assert choose_teacher("auto", model, quantisable=layers) == "cache"
    assert choose_teacher("copy", model) == "copy"


def test_logits_on_disk_are_read_again_unless_they_are_torn(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows, collator, folder = tiny_llama(), text_rows(), Collator(2), tmp_path / "teacher"
    first = CachedTeacher(model, rows, collator, batch=5, folder=folder).targets(batch([0, 3]))
    silent = tiny_llama()
    monkeypatch.setattr(silent, "forward", None)
    other = CachedTeacher(silent, rows, collator, batch=5, folder=folder)
    torch.testing.assert_close(other.targets(batch([0, 3])), first, rtol=0, atol=0)
    with (folder / "tokens").open("r+b") as file:
        file.write(b"\x7f")
    again = CachedTeacher(model, rows, collator, batch=5, folder=folder).targets(batch([0, 3]))
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert "tokens was altered" in caplog.text


def test_training_on_the_targets_alone_makes_another_model_say_the_same() -> None:
    teacher, student, rows = tiny_llama(), tiny_llama(), text_rows(24)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    held = batch([0, 1, 2, 3])

    def distance() -> float:
        student.eval()
        logits = student(input_ids=held["input_ids"], attention_mask=held["attention_mask"]).logits
        return imitation_loss(logits, teacher_logits(teacher, held), held["labels"], predictions).item()

    before = distance()
    trainer = DistillingTrainer(
        model=student, args=arguments(Path(), steps=20, learning_rate=3e-3, remove_unused_columns=False),
        train_dataset=NumberedRows(rows), data_collator=NumberedCollator(Collator(2)),
        teacher=CopyTeacher(teacher), weight=1.0, predictions=predictions, guard=StepGuard(),
    )  # fmt: skip
    trainer.train()
    assert distance() < 0.5 * before
