"""A Trainer that reports its losses to a guard, and whose parameters may be replaced between two steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from loraprune.models.adapters import lora_plus_optimizer
from loraprune.models.foreign_state import shard_on_cpus
from loraprune.runtime import launch
from loraprune.runtime.resharding import wrap_blocks
from loraprune.training.guard import StepGuard


class GuardedTrainer(Trainer):
    """A Trainer that reports its losses to a guard, and whose parameters may be replaced between two steps.

    FSDP2 does not shard the modules in `undivided`. `counts_targets` says whether the model divides its loss by the
    targets of the whole optimiser step; None leaves that to the Trainer, which assumes it of every model whose forward has **kwargs.
    `forward_only` skips the backward pass: for steps that only score activations. `lora_plus` is the ratio of the learning rates of
    LoRA's B and A.
    """

    def __init__(
        self,
        *arguments: Any,
        guard: StepGuard,
        counts_targets: bool | None = None,
        undivided: Sequence[nn.Module] = (),
        forward_only: bool = False,
        lora_plus: float = 1.0,
        **options: Any,
    ) -> None:
        self._undivided, self._forward_only, self._lora_plus = list(undivided), forward_only, lora_plus
        super().__init__(*arguments, **options)
        if counts_targets is not None:
            self.model_accepts_loss_kwargs = counts_targets
        if self.is_fsdp_enabled:
            assert self.model is not None
            wrap_blocks(self.accelerator.state.fsdp_plugin, self.model)
        self._guard = guard
        self._last = torch.zeros((), device=self.args.device)
        self._wrapper: DistributedDataParallel | None = None
        self._wrapped: list[nn.Parameter] = []

    def create_accelerator_and_postprocess(self) -> None:
        """Make FSDP2 work on CPUs too, where accelerate ignores the launcher's request, and shard everything that can be sharded."""
        super().create_accelerator_and_postprocess()
        if launch.is_sharded() and shard_on_cpus(self.accelerator):
            self.is_fsdp_enabled = True
        if self._undivided and self.is_fsdp_enabled:
            self.accelerator.state.fsdp_plugin.ignored_modules = self._undivided

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the Trainer's optimiser, with a higher learning rate for LoRA's B if one is asked for."""
        if self._lora_plus == 1 or self.optimizer is not None:
            made: torch.optim.Optimizer = super().create_optimizer(model)
            return made
        trained: Any = self.model if model is None else model
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        self.optimizer = lora_plus_optimizer(trained, kind, options, ratio=self._lora_plus)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: Any, *arguments: Any, **options: Any) -> Float[Tensor, ""]:
        """Return the loss of a micro-batch, or the previous one if it is not finite: the Trainer's sum would never recover."""
        loss: Any
        if self._forward_only:
            model.train()
            with torch.no_grad():
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
        else:
            loss = super().training_step(self._up_to_date(model), inputs, *arguments, **options)
        self._guard.see(loss)
        self._last = torch.where(torch.isfinite(loss), loss, self._last)
        return self._last

    def _up_to_date(self, model: nn.Module) -> nn.Module:
        """Return the wrapper that sums the gradients of the present parameters: a cut model has new ones.

        `model` is the one that the Trainer wrapped at the start and hands on from step to step.
        """
        if not isinstance(model, DistributedDataParallel):
            return model
        present = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self._wrapper is None:
            self._wrapper, self._wrapped = model, present
        elif any(one is not other for one, other in zip(present, self._wrapped, strict=True)):
            self._wrapper, self._wrapped = wrapped_again(self._wrapper), present
        self._wrapper.require_backward_grad_sync = model.require_backward_grad_sync
        return self._wrapper


def wrapped_again(wrapper: DistributedDataParallel) -> DistributedDataParallel:
    """Wrap the module of a wrapper like before; its parameters are alike in all processes and are not sent again."""
    return DistributedDataParallel(
        wrapper.module,
        device_ids=wrapper.device_ids,
        output_device=wrapper.output_device,
        init_sync=False,
        find_unused_parameters=wrapper.find_unused_parameters,
        gradient_as_bucket_view=wrapper.gradient_as_bucket_view,
    )
