"""What a Trainer of one's own may be set to: it works to the end, or is refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import M2M100Config, M2M100ForConditionalGeneration, Trainer, TrainerCallback

from loraprune import LoRAPruneCallback, LoRAPruneConfig, attach_lora, from_pretrained, save_pruned
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.models.adapters import linear_paths
from loraprune.training.callback import EveryLayer
from tests.fitting import Rows, adapted, arguments, config, fit
from tests.samples import tiny_llama
from tests.tiny import tiny_model


def test_the_best_checkpoint_at_the_end_is_refused_before_any_step(tmp_path: Path) -> None:
    settings = config()
    callback = LoRAPruneCallback(settings)
    best = {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    args = arguments(tmp_path, steps=4, load_best_model_at_end=True, **best)
    trainer = Trainer(
        model=adapted(settings), args=args, train_dataset=Rows(), eval_dataset=Rows(8), callbacks=[callback]
    )
    with pytest.raises(ConfigError, match="load_best_model_at_end=True"):
        trainer.train()
    assert callback.pruner is None
    fit(
        adapted(settings),
        arguments(tmp_path, steps=4, save_strategy="steps", save_steps=2),
        [LoRAPruneCallback(settings)],
    )


@pytest.mark.parametrize("optim", ["adamw_torch", "sgd", "rmsprop", "adagrad"])
def test_a_state_of_one_number_for_each_weight_is_cut_with_it(optim: str, tmp_path: Path) -> None:
    settings = config(interval=1)
    callback = LoRAPruneCallback(settings)
    fit(adapted(settings), arguments(tmp_path, steps=4, optim=optim), [callback])
    assert callback.pruner is not None
    assert callback.pruner.is_done


class Reporter(TrainerCallback):
    """Keeps what a dashboard would be sent."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.seen.append(dict(named["logs"]))


class Early(Reporter):
    """One that is called before the pruning callback."""


def test_the_ratio_is_in_the_logs(tmp_path: Path) -> None:
    settings = config(interval=1)
    callback, before, behind = LoRAPruneCallback(settings), Early(), Reporter()
    trainer = fit(adapted(settings), arguments(tmp_path, steps=6, logging_steps=1), [before, callback, behind])
    logged = [entry["ratio"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 6
    assert logged == sorted(logged)
    assert logged[0] < logged[-1]
    assert logged[-1] == callback.history[-1]["ratio"]
    assert [entry["ratio"] for entry in behind.seen][:6] == logged
    assert not any("ratio" in entry for entry in before.seen)  # the control
    trainer.add_callback(trainer.pop_callback(Early))  # as docs/trainer.md moves a dashboard
    seen = len(before.seen)
    trainer.train()
    assert len(before.seen) > seen
    assert all("ratio" in entry for entry in before.seen[seen:])


def test_a_second_adapter_is_cut_with_the_first(tmp_path: Path) -> None:
    """Trainers of preferences compare with a copy of the adapter, called `ref`."""
    settings = config(interval=1)
    model = adapted(settings)
    model.add_adapter("ref", model.peft_config["default"])
    callback = LoRAPruneCallback(settings)
    fit(model, arguments(tmp_path, steps=4), [callback])
    ids = torch.arange(8)[None]
    trained = model.eval()(input_ids=ids).logits
    model.set_adapter("ref")
    assert torch.isfinite(model(input_ids=ids).logits).all()
    save_pruned(callback, tmp_path / "out")
    assert torch.allclose(from_pretrained(tmp_path / "out")(input_ids=ids).logits, trained, atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {"modules_to_save": ["embed_tokens", "lm_head"]}, {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": {"embed_tokens": [200, 201]}},
    ],
    ids=["both", "embeddings", "tokens"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:.*no longer tied", "ignore:.*tied")
def test_trained_embeddings_are_saved_where_the_model_ties_them(more: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    before = model.model.embed_tokens.weight.detach().clone()
    paths = linear_paths(find_groups(model.config))
    model = get_peft_model(model, LoraConfig(r=4, target_modules=paths, task_type="CAUSAL_LM", **more))
    callback = LoRAPruneCallback(config(interval=1))
    rows: Any = [{"input_ids": [200, 201, *range(20, 30)], "labels": [200, 201, *range(20, 30)]}] * 16
    Trainer(
        model=model, args=arguments(tmp_path, steps=4, learning_rate=5e-3), train_dataset=rows, callbacks=[callback]
    ).train()  # fmt: skip
    ids = torch.tensor(rows[0]["input_ids"])[None]
    trained = model.eval()(input_ids=ids).logits.detach()
    save_pruned(callback, tmp_path / "out")
    loaded = from_pretrained(tmp_path / "out")
    assert torch.allclose(loaded(input_ids=ids).logits, trained, atol=1e-4)
    assert not torch.equal(loaded.model.embed_tokens.weight[200], before[200])


def translator(layerdrop: float) -> M2M100ForConditionalGeneration:
    torch.manual_seed(0)
    return M2M100ForConditionalGeneration(M2M100Config(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64, decoder_start_token_id=2, pad_token_id=1,
        encoder_layerdrop=layerdrop, decoder_layerdrop=layerdrop,
    ))  # fmt: skip


@pytest.mark.parametrize("criterion", ["lora", "gate", "gradient", "wanda"])
def test_layers_that_are_skipped_at_random_are_scored(criterion: str, tmp_path: Path) -> None:
    settings = config(ratio=0.3, interval=1, criterion=criterion)
    model = attach_lora(translator(0.5), settings)
    rows: Any = [{"input_ids": [3, 4, 5, 2], "labels": [6, 7, 2]}] * 16
    callback = LoRAPruneCallback(settings)
    Trainer(model=model, args=arguments(tmp_path, steps=6), train_dataset=rows, callbacks=[callback]).train()
    assert callback.pruner is not None
    assert callback.pruner.is_done
    assert model.get_base_model().model.encoder.layerdrop == 0.5  # it skips again afterwards
    assert not EveryLayer(translator(0.0))  # the control


class Stop(TrainerCallback):
    """Stops a training after two steps."""

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        control.should_training_stop = state.global_step == 2


class Short(Trainer):
    """A Trainer whose memory is too short once."""

    calls = 0

    def compute_loss(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().compute_loss(*arguments, **named)


def test_a_training_that_begins_again_goes_on_with_what_is_left(tmp_path: Path) -> None:
    settings = config(interval=1)
    callback = LoRAPruneCallback(settings)
    args = arguments(tmp_path, steps=8, auto_find_batch_size=True, max_grad_norm=0.5)
    Short(model=adapted(settings), args=args, train_dataset=Rows(), callbacks=[callback]).train()
    assert callback.history[-1]["ratio"] == pytest.approx(0.5, abs=0.05)
    assert args.max_grad_norm == 0.5
    save_pruned(callback, tmp_path / "out")


def test_a_second_training_tunes_what_the_first_one_left(tmp_path: Path) -> None:
    settings = config(interval=1)
    callback = LoRAPruneCallback(settings)
    trainer = fit(adapted(settings), arguments(tmp_path, steps=4), [callback])
    plan, before = callback.pruner.plan, {n: p.detach().clone() for n, p in trainer.model.named_parameters()}  # type: ignore[union-attr]
    trainer.train()
    assert callback.pruner.plan == plan  # type: ignore[union-attr]
    assert not all(torch.equal(before[name], each) for name, each in trainer.model.named_parameters())
    save_pruned(callback, tmp_path / "out")


def test_a_training_that_ended_before_its_target_is_not_begun_again(tmp_path: Path) -> None:
    settings = LoRAPruneConfig(ratio=0.5, rank=4, interval=1, cooldown=0.0)
    callback = LoRAPruneCallback(settings)
    model = adapted(settings)
    trainer = Trainer(model=model, args=arguments(tmp_path, steps=8), train_dataset=Rows(), callbacks=[callback])
    trainer.add_callback(Stop())
    trainer.train()
    with pytest.raises(ConfigError, match=r"train\(\) again"):
        trainer.train()


def test_errors_in_a_trainer_speak_of_arguments(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"adapter='olora': .*stores its weight as .in, out."):
        attach_lora(tiny_model("gpt2"), LoRAPruneConfig(adapter="olora"))
    callback = LoRAPruneCallback(LoRAPruneConfig(kinds="query"))
    with pytest.raises(ConfigError, match="kinds='query': this model has no 'query'"):
        fit(attach_lora(tiny_model("gpt2"), LoRAPruneConfig()), arguments(tmp_path, steps=2), [callback])
