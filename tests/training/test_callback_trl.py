"""Three lines join TRL's SFTTrainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune import LoRAPruneCallback, LoRAPruneConfig, Plan, attach_lora, save_pruned
from loraprune.errors import CheckpointError, ConfigError
from tests.tiny import relative, tiny_config

trl = pytest.importorskip("trl")

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


def test_saving_before_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has not seen a training run"):
        save_pruned(LoRAPruneCallback(LoRAPruneConfig()), tmp_path / "small")
    assert not (tmp_path / "small").exists()
