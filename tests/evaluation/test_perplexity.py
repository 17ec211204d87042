from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from loraprune.data import Row, TokenRows
from loraprune.errors import ConfigError, DataError, NumericsError
from loraprune.evaluation import perplexity as perplexities
from loraprune.evaluation.perplexity import perplexity, token_nll
from loraprune.models.modes import evaluation_mode

SHARED = Path(__file__).resolve().parents[3] / "shared"
VOCABULARY = 61


def tiny_llama(dropout: float = 0.0) -> LlamaForCausalLM:
    """Weights drawn wide, so that a wrong position changes the loss by far more than rounding does."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.3, attention_dropout=dropout,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def make_rows(lengths: list[int], prompt: int = 0) -> TokenRows:
    """Random rows, the first `prompt` tokens of each without a target."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in lengths:
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Row(ids, [-100] * prompt + ids[prompt:]))
    return TokenRows(tuple(rows), {"source": "random"})


def nll_by_hand(model: LlamaForCausalLM, rows: TokenRows, shift: int = 1) -> float:
    """Row by row in float64, token by token, from the definition; `shift` 0 is the classic mistake."""
    model = model.double()
    total, count = 0.0, 0
    for index in range(len(rows)):
        ids, labels = rows[index]["input_ids"], rows[index]["labels"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        for place in range(len(ids) - 1):
            target = labels[place + shift]
            if labels[place + 1] != -100:
                total += float(torch.logsumexp(logits[place], 0) - logits[place, target])
                count += 1
    return total / count


def test_nll_equals_a_float64_computation_by_hand() -> None:
    rows = make_rows([16] * 5)
    measured = perplexity(tiny_llama(), rows, batch=2)
    expected = nll_by_hand(tiny_llama(), rows)
    assert measured.nll == pytest.approx(expected, rel=1e-5)  # float32 logits against float64 ones
    assert measured.value == pytest.approx(math.exp(expected), rel=1e-4)
    assert measured.tokens == 5 * 15


def test_labels_that_are_not_shifted_give_another_number() -> None:
    rows = make_rows([16] * 5)
    assert abs(perplexity(tiny_llama(), rows).nll - nll_by_hand(tiny_llama(), rows, shift=0)) > 0.01


def test_nll_equals_the_loss_of_transformers_on_full_windows() -> None:
    model, rows = tiny_llama(), make_rows([16] * 4)
    ids = torch.tensor([rows[index]["input_ids"] for index in range(4)])
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert perplexity(model, rows).nll == pytest.approx(float(loss), rel=1e-6)


def test_a_shifted_label_changes_the_nll_of_that_row_only() -> None:
    torch.manual_seed(2)
    logits, labels = torch.randn(2, 9, VOCABULARY), torch.randint(VOCABULARY, (2, 9))
    moved = labels.clone()
    moved[0] = labels[0].roll(1)
    right, wrong = token_nll(logits, labels), token_nll(logits, moved)
    assert torch.equal(right[1], wrong[1])
    assert not torch.allclose(right[0], wrong[0])


def test_prompts_and_padding_are_no_targets() -> None:
    rows = make_rows([5, 16, 9], prompt=3)
    measured = perplexity(tiny_llama(), rows, batch=3)
    assert measured.tokens == 2 + 13 + 6
    assert measured.nll == pytest.approx(nll_by_hand(tiny_llama(), rows), rel=1e-5)


def test_token_zero_of_the_text_counts_though_it_also_fills_rows_up() -> None:
    rows = TokenRows((Row([0, 0, 7, 0], [0, 0, 7, 0]), Row([3, 0], [3, 0])), {})
    measured = perplexity(tiny_llama(), rows, batch=2)
    assert measured.tokens == 4
    assert measured.nll == pytest.approx(nll_by_hand(tiny_llama(), rows), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_batch_size_does_not_change_the_nll(batch: int) -> None:
    model, rows = tiny_llama(), make_rows([5, 16, 9, 12, 4])
    assert perplexity(model, rows, batch=batch).nll == pytest.approx(perplexity(model, rows, batch=5).nll, rel=1e-6)


def test_logits_are_cast_to_float32_in_chunks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    logits, labels = torch.randn(2, 20, VOCABULARY).bfloat16(), torch.randint(VOCABULARY, (2, 20))
    by_hand = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none")
    sizes: list[int] = []
    plain = torch.nn.functional.cross_entropy

    def recording(chunk: torch.Tensor, *rest: object, **options: object) -> torch.Tensor:
        assert chunk.dtype == torch.float32
        sizes.append(chunk.numel())
        return plain(chunk, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(perplexities, "CHUNK_ELEMENTS", 3 * VOCABULARY)
    monkeypatch.setattr(perplexities.functional, "cross_entropy", recording)
    assert torch.allclose(token_nll(logits, labels).double().flatten(), by_hand, atol=1e-5)
    assert max(sizes) == 3 * VOCABULARY
    assert sum(sizes) == 2 * 20 * VOCABULARY


def test_a_bfloat16_model_is_scored_in_float32() -> None:
    model, rows = tiny_llama().bfloat16(), make_rows([16] * 3)
    ids = torch.tensor([rows[index]["input_ids"] for index in range(3)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten())
    measured = perplexity(model, rows)
    assert measured.nll == pytest.approx(float(expected), rel=1e-6)
    assert measured.protocol["dtype"] == "bfloat16"


def test_every_submodule_keeps_its_own_mode() -> None:
    model = tiny_llama(dropout=0.5).train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    first, second = perplexity(model, make_rows([8] * 2)), perplexity(model, make_rows([8] * 2))
    assert [module.training for module in model.modules()] == before
    assert first.nll == second.nll  # dropout was off


class Stop(Exception):
    """An error that nothing else raises."""


def test_the_mode_comes_back_after_an_error() -> None:
    model = tiny_llama().train()
    with suppress(Stop), evaluation_mode(model):
        assert not any(module.training for module in model.modules())
        assert torch.is_inference_mode_enabled()
        raise Stop
    assert all(module.training for module in model.modules())
    assert not torch.is_inference_mode_enabled()


def test_training_goes_on_after_a_measurement() -> None:
    model, rows = tiny_llama().train(), make_rows([8] * 2)
    perplexity(model, rows)
    ids = torch.tensor([rows[0]["input_ids"]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_its_row(poison: float) -> None:
    model = tiny_llama()
    model.get_input_embeddings().weight.data[60] = poison
    rows = TokenRows(tuple(Row([t, 2, 3], [t, 2, 3]) for t in (1, 4, 5, 60, 6)), {})
    with pytest.raises(NumericsError, match=r"row 3 is nan"):
        perplexity(model, rows, batch=2)


def test_a_perplexity_beyond_floats_is_refused() -> None:
    model = tiny_llama()
    model.lm_head.weight.data *= 1e5
    with pytest.raises(NumericsError, match="its perplexity is not finite"):
        perplexity(model, make_rows([16] * 2))


def test_limit_takes_the_first_rows_and_progress_counts_them() -> None:
    model, rows = tiny_llama(), make_rows([16] * 5)
    calls: list[tuple[int, int]] = []
    measured = perplexity(model, rows, batch=2, limit=3, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2, 3), (3, 3)]
    assert measured.protocol["limit"] == 3
    assert measured.nll == pytest.approx(perplexity(model, TokenRows(rows.rows[:3], {})).nll, rel=1e-6)


def test_the_protocol_is_the_rows_own_and_the_measurements() -> None:
    measured = perplexity(tiny_llama(), make_rows([5, 16]), batch=4)
    assert measured.protocol == {
        "source": "random", "window_tokens": 16, "limit": None, "shifted": True, "dtype": "float32", "batch": 4,
    }  # fmt: skip


def test_the_standard_error_of_equal_windows_is_that_of_their_means() -> None:
    model, rows = tiny_llama(), make_rows([16] * 6)
    means = torch.tensor([perplexity(model, TokenRows((row,), {})).nll for row in rows.rows], dtype=torch.float64)
    measured = perplexity(model, rows)
    assert measured.standard_error == pytest.approx(float(means.std()) / math.sqrt(6), rel=1e-4)


def test_a_single_row_has_no_standard_error_and_is_valid_json() -> None:
    measured = perplexity(tiny_llama(), make_rows([16]))
    assert json.loads(json.dumps(measured.measured().to_json(), allow_nan=False))["standard_error"] is None


@pytest.mark.parametrize("rows", [TokenRows((), {}), TokenRows((Row([3], [3]), Row([4, 5], [4, -100])), {})])
def test_rows_without_a_target_are_refused(rows: TokenRows) -> None:
    with pytest.raises(DataError, match=f"^{len(rows)} rows hold no token to predict"):
        perplexity(tiny_llama(), rows)


@pytest.mark.parametrize(("batch", "limit"), [(0, None), (4, 0)])
def test_a_batch_or_limit_below_one_is_refused(batch: int, limit: int | None) -> None:
    with pytest.raises(ConfigError, match="is 0: at least 1"):
        perplexity(tiny_llama(), make_rows([8]), batch=batch, limit=limit)


def test_a_trained_model_predicts_stories_far_better_than_their_words_shuffled() -> None:
    folder = SHARED / "models" / "llama-stories-260k"
    if not folder.is_dir():
        pytest.skip("the shared story model is not beside this checkout")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her mom."
    words = story.split()
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0)).tolist()
    texts = [story, " ".join(words[index] for index in order)]
    told, shuffled = (TokenRows((Row(ids, ids),), {}) for ids in (tokenizer(text)["input_ids"] for text in texts))
    assert perplexity(model, told).nll < perplexity(model, shuffled).nll - 1
