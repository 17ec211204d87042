"""Three lines join TRL's Trainers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

from loraprune import LoRAPruneCallback, LoRAPruneConfig, Plan, attach_lora, from_pretrained, save_pruned
from loraprune.errors import CheckpointError, ConfigError
from tests.samples import byte_tokenizer, tiny_llama
from tests.tiny import relative, tiny_config

trl = pytest.importorskip("trl")

CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TEXTS = ["One day a little girl went to the park.", "The dog was happy and ran to the big tree."] * 8


def test_three_lines_prune_with_trls_trainer_and_save_a_stock_checkpoint(shared: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-260k")
    config = tiny_config("llama")
    config.vocab_size = len(tokenizer)
    dense = AutoModelForCausalLM.from_config(config)
    parameters = dense.num_parameters()

    settings = LoRAPruneConfig(ratio=0.5, rank=4, interval=2)
    model, callback = attach_lora(dense, settings), LoRAPruneCallback(settings)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"), max_steps=10, per_device_train_batch_size=4, max_length=32, use_cpu=True,
            dataloader_pin_memory=False, save_strategy="no", report_to=[], disable_tqdm=True, bf16=False,
        ),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    assert callback.pruner is not None
    assert callback.pruner.is_done

    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model.eval()(input_ids=ids).logits
    save_pruned(callback, tmp_path / "small", tokenizer=tokenizer)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert loaded.num_parameters() < parameters
    with torch.no_grad():
        assert relative(expected, loaded(input_ids=ids).logits) < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "small").decode(ids[0]) == tokenizer.decode(ids[0])
    assert Plan.read(tmp_path / "small") == callback.pruner.plan
    with pytest.raises(CheckpointError, match="exists"):
        save_pruned(callback, tmp_path / "small")


def chats(question: str, answer: str, count: int = 16) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{question} {place % 3}?", "chosen": f"{answer} {place}.", "rejected": "no no no."}
        for place in range(count)
    ]


def preferences() -> Dataset:
    return Dataset.from_list(chats("how many", "there are"))


def judgements() -> Dataset:
    rows = chats("how many", "there are")
    return Dataset.from_list([
        {"prompt": row["prompt"], "completion": row["chosen"] if place % 2 else row["rejected"], "label": bool(place % 2)}
        for place, row in enumerate(rows)
    ])  # fmt: skip


def prompts() -> Dataset:
    return Dataset.from_list([{"prompt": row["prompt"]} for row in chats("how many", "there are")])


def conversations() -> Dataset:
    return Dataset.from_list([
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
        for row in chats("how many", "there are")
    ])  # fmt: skip


def length_of(completions: list[str], **columns: Any) -> list[float]:
    """Return the reward of GRPO: shorter is better."""
    return [-float(len(str(text))) for text in completions]


def gkd() -> Any:
    return pytest.importorskip("trl.experimental.gkd")


def classifier() -> Any:
    """Return a model that gives one number for a text."""
    settings = tiny_llama().config
    settings.num_labels = 1
    return LlamaForSequenceClassification(settings)


TRAINERS: dict[str, Any] = {
    "dpo": lambda: (trl.DPOTrainer, trl.DPOConfig, preferences(), {}, {}),
    "kto": lambda: (trl.KTOTrainer, trl.KTOConfig, judgements(), {}, {}),
    "grpo": lambda: (trl.GRPOTrainer, trl.GRPOConfig, prompts(), {"num_generations": 4, "max_completion_length": 6},
                     {"reward_funcs": length_of}),
    "reward": lambda: (trl.RewardTrainer, trl.RewardConfig, preferences(), {}, {}),
    "gkd": lambda: (gkd().GKDTrainer, gkd().GKDConfig, conversations(), {"max_new_tokens": 4}, {"teacher_model": tiny_llama()}),
}  # fmt: skip
"""name -> Trainer, its arguments' class, data, and further arguments of both"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", TRAINERS)
def test_trls_other_trainers_prune_too(name: str, tmp_path: Path) -> None:
    trainer_class, args_class, rows, further, more = TRAINERS[name]()
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    settings = LoRAPruneConfig(ratio=0.5, rank=4, interval=1, local=0)
    dense = classifier() if name == "reward" else tiny_llama()
    parameters = dense.num_parameters()
    callback = LoRAPruneCallback(settings)
    trainer = trainer_class(
        model=attach_lora(dense, settings),
        args=args_class(
            output_dir=str(tmp_path / "run"), max_steps=4, per_device_train_batch_size=4, use_cpu=True, logging_steps=1,
            dataloader_pin_memory=False, save_strategy="no", report_to=[], disable_tqdm=True, bf16=False,
            gradient_checkpointing=False, **further,
        ),
        train_dataset=rows, processing_class=tokenizer, callbacks=[callback], **more,
    )  # fmt: skip
    trainer.train()
    assert callback.pruner is not None
    assert callback.pruner.is_done
    assert callback.history[-1]["ratio"] == pytest.approx(0.5, abs=0.05)
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
    save_pruned(callback, tmp_path / "small", tokenizer=tokenizer)
    loaded = from_pretrained(tmp_path / "small")
    assert type(loaded) is type(dense)
    assert loaded.num_parameters() < parameters
    with torch.no_grad():
        assert relative(expected, loaded(input_ids=ids).logits) < 1e-4


def test_saving_before_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not seen a training run"):
        save_pruned(LoRAPruneCallback(LoRAPruneConfig()), tmp_path / "small")
    assert not (tmp_path / "small").exists()
