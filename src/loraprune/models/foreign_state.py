"""State that is set in objects of other libraries because they offer no hook: all of it is here.

Each function says what forces it. Everything else goes through public hooks, arguments and subclasses.
"""

from __future__ import annotations

from typing import Any

from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from jaxtyping import Float
from torch import Tensor, nn
from transformers import TrainingArguments

CONTEXT = (("tensors", (None, None, None)), ("A", None))
"""attribute of the autograd node of an 8-bit product -> the value that holds nothing"""


def drop_saved_input(layer: nn.Module, args: tuple[Any, ...], output: Float[Tensor, "*places out"]) -> None:
    """Drop the input of an 8-bit layer, and the copy of its outliers, from the autograd node of its output; a forward hook.

    They serve the gradient of the weight, which is frozen, and stay as attributes of the node instead of as saved tensors, so that neither
    gradient checkpointing nor `torch.autograd.graph.saved_tensors_hooks` reaches them: 8 GiB of a step of LLaMA-7B with 8 x 512 tokens.
    Source: bitsandbytes 0.50, `MatMul8bitLt` and, on CPUs, `MatMul8bitFp`; for `MatMul4Bit` the same is reported in
    https://github.com/bitsandbytes-foundation/bitsandbytes/issues/2034, which is open.
    """
    for name, nothing in CONTEXT:
        if hasattr(output.grad_fn, name):
            setattr(output.grad_fn, name, nothing)


def compute_as_in_training(layer: nn.Module, args: tuple[Any, ...]) -> None:
    """Keep a quantised layer in training mode on a CPU; a forward pre-hook.

    In evaluation mode bitsandbytes 0.50 rounds activations to 8 bits there, and repacks 4-bit weights in place. No argument turns that off.
    """
    layer.training = layer.training or args[0].device.type == "cpu"


def forget_quantiser(model: Any) -> None:
    """Make transformers treat a model whose layers were dequantised as any other.

    `remove_quantization_config` of transformers 5.17 to 5.24 leaves two attributes that `to`, `num_parameters` and the Trainer read.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None:
        quantiser.remove_quantization_config(model)
        model.is_loaded_in_8bit = model.is_loaded_in_4bit = False


def take_over_clipping(args: TrainingArguments) -> float:
    """Return the largest norm of the gradients that a user's Trainer clips to, and switch its clipping off.

    The Trainer clips before it calls `on_pre_optimizer_step`, the first event after the backward pass (transformers 5.17 to 5.24), and
    scores need the gradients before that. The event was asked for in https://github.com/huggingface/transformers/issues/31033; there
    is none before clipping. `give_back_clipping` undoes it. A run of this package gives its Trainer no norm to clip to instead.
    """
    norm, args.max_grad_norm = args.max_grad_norm or 0.0, 0.0
    return norm


def give_back_clipping(args: TrainingArguments, norm: float) -> None:
    """Let the Trainer clip again."""
    args.max_grad_norm = norm


def shard_on_cpus(accelerator: Any) -> bool:
    """Let accelerate use FSDP2 on CPUs, and say whether that was needed.

    `AcceleratorState` of accelerate 1.10 to 1.15 looks at the launcher's flag and at the argument `fsdp_plugin` for accelerators only. The
    tests of sharding run on CPUs.
    """
    if accelerator.distributed_type != DistributedType.MULTI_CPU:
        return False
    state = accelerator.state
    state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, FullyShardedDataParallelPlugin()
    return True
