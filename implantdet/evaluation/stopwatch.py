"""Seconds that a model takes."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn


class TimedModel(nn.Module):
    """A model that knows how long its last call took, data loading not counted.

    Args:
        model: takes and returns a batch.

    Attributes:
        seconds: of the last call, by the wall clock; a GPU has finished by then.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seconds = float("nan")
        self.train(model.training)  # whoever restores the mode of this restores that of the model

    def forward(self, inputs: list[dict[str, Any]]) -> Any:
        """Call the model."""
        self._wait()
        start = time.perf_counter()
        outputs = self.model(inputs)
        self._wait()
        self.seconds = time.perf_counter() - start
        return outputs

    def _wait(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
