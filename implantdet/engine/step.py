"""One training iteration: mixed precision, gradient accumulation, and randomness that an interruption cannot change."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from implantdet.engine.loader import seed_everything

_ITERATION_STREAM = 1  # keeps the seeds of iterations apart from those of images


class StepTrainer(SimpleTrainer):
    """Detectron2's training step with three things more.

    * The batch of a process is split into ``accumulation_steps`` parts that pass through the model one after another;
      their gradients are averaged. An iteration remains one step of the optimizer on ``IMS_PER_BATCH`` images.
    * With ``amp``, the forward pass runs in bfloat16 where the device has it (the CPU, and CUDA from Ampere on), and
      else in float16 with loss scaling. A CPU that has to emulate bfloat16 is named in a warning.
    * The generators are seeded by (seed, iteration, rank) before the forward pass. Nothing that runs between two
      iterations can change the training, and resuming needs no generator states.

    Args:
        model: in its place on the device, wrapped for several processes if there are several.
        data_loader: yields the batches of this process, one per iteration.
        optimizer: steps once per iteration.
        accumulation_steps: parts of a batch, >= 1.
        amp: mixed precision.
        seed: the same in all processes.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[dict[str, Any]]],
        optimizer: torch.optim.Optimizer,
        *,
        accumulation_steps: int = 1,
        amp: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.accumulation_steps = accumulation_steps
        self.amp = amp
        self.seed = seed
        self.device = next(model.parameters()).device
        self.dtype = amp_dtype(self.device)
        if amp and self.device.type == "cpu" and emulates_bfloat16():
            logging.getLogger(__name__).warning(
                "SOLVER.AMP.ENABLED: this CPU has no instructions for bfloat16, float32 is faster; set it to False"
            )
        self.grad_scaler = torch.amp.GradScaler(enabled=amp and self.dtype == torch.float16)

    def run_step(self) -> None:
        """Train on one batch."""
        assert self.model.training, "the model was changed to eval mode"
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_everything(self.seed, self.iter, comm.get_rank(), _ITERATION_STREAM)
        self.optimizer.zero_grad()
        losses: dict[str, Any] = {}
        size = len(batch) // self.accumulation_steps
        for part in range(self.accumulation_steps):
            is_last = part == self.accumulation_steps - 1
            for name, value in self._accumulate(batch[part * size : (part + 1) * size], is_last).items():
                losses[name] = losses.get(name, 0) + value
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _accumulate(self, images: list[dict[str, Any]], is_last: bool) -> dict[str, torch.Tensor]:
        """Add the gradients of a part of the batch, and return its share of the batch's losses."""
        # Processes exchange gradients once per iteration, with the last part.
        wait = contextlib.nullcontext() if is_last or comm.get_world_size() == 1 else self.model.no_sync()
        with wait, self._attention():  # backward too: checkpointed blocks run again there
            with torch.autocast(self.device.type, self.dtype, enabled=self.amp):
                losses = {name: value / self.accumulation_steps for name, value in self.model(images).items()}
            self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _attention(self) -> contextlib.AbstractContextManager[None]:
        """On the CPU, PyTorch's fused attention is slower backward in bfloat16 than in float32, and than its parts."""
        if self.amp and self.device.type == "cpu":
            return sdpa_kernel(SDPBackend.MATH)
        return contextlib.nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer and of the loss scaling, and the seed."""
        return super().state_dict() | {"grad_scaler": self.grad_scaler.state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, but the seed, which a config may give."""
        super().load_state_dict(state_dict)
        if state_dict["grad_scaler"]:  # it has none where the losses were not scaled: without AMP, or in bfloat16
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def amp_dtype(device: torch.device) -> torch.dtype:
    """The type of mixed precision on a device: bfloat16 needs no loss scaling, so it is taken where it is native."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.float16
    return torch.bfloat16


def emulates_bfloat16() -> bool:
    """Whether the CPU is known to have no instructions for bfloat16."""
    # Older versions of torch know no capabilities: then nothing is known.
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found.get("architecture") == "x86_64" and not (found["avx512_bf16"] or found["amx_bf16"])
