"""Checkpoints that are whole or not there, hold no code, and say what of them was loaded."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from implantdet.modeling.weights import TIMM_SCHEME, fit_backbone_state, local_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

BEST = "model_best"


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with stricter rules.

    * Files are read by ``implantdet.modeling.weights.read_checkpoint``: plain tensors and containers, no pickles.
    * ``MODEL.WEIGHTS`` has to cover the whole ViT (unless ``allow_partial``); heads of another shape start anew.
      A checkpoint that is resumed or evaluated has to cover the whole model. One that is resumed has no more than that,
      and averaged weights (``ema``) if the training has them. These are what it evaluates: to load them into a model,
      ``Checkpointer(model, ema=model)``; without ``ema`` it gets the weights of the last step.
    * A file gets its name when it is complete, and only then does ``last_checkpoint`` name it: after a crash at any
      moment the last complete checkpoint is resumed. The best checkpoint is never the one to resume from.

    Args:
        model: the model, also when it is wrapped for several processes.
        save_dir: folder of the checkpoints.
        allow_partial: ``MODEL.VIT.ALLOW_PARTIAL_WEIGHTS``.
        checkpointables: whatever else is saved, by its name in the file.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, allow_partial: bool = False, **checkpointables: Any
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.allow_partial = allow_partial
        self._complete = True
        self._source = ""

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint file, a URL, or ``timm://<name>``.

        Args:
            path: where from; empty: nothing is loaded.
            checkpointables: names of what is loaded beside the model. None means everything, and that the whole model
                has to be covered: to resume, or to evaluate.

        Returns:
            What else is in the checkpoint.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is of the wrong kind, or does not cover what it has to.
        """
        self._complete = checkpointables is None
        self._source = path
        if not path.startswith(TIMM_SCHEME):
            if path:
                # Detectron2 (which takes options behind a question mark) asserts that it is there, and says no more.
                local_checkpoint(path.partition("?")[0])
            try:
                return super().load(path, checkpointables)
            finally:  # or Detectron2 refuses the next file, too
                self._parsed_url_during_load = None
        checkpoint = read_checkpoint(path)
        self._log_incompatible_keys(self._load_model(checkpoint))
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        try:
            checkpoint["model"] = fit_backbone_state(checkpoint["model"], self.model, self.allow_partial)
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from error
        num_keys = len(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        missing = incompatible.missing_keys  # those of another shape among them
        logger.info(
            "Loaded %d of the model's %d keys; %d missing or of another shape, %d unexpected.",
            num_keys - len(incompatible.unexpected_keys) - len(incompatible.incorrect_shapes),
            len(self.model.state_dict()),
            len(missing),
            len(incompatible.unexpected_keys),
        )
        # To go on without a part of what was trained would be another training.
        is_resumed = "trainer" in self.checkpointables
        unexpected = incompatible.unexpected_keys if is_resumed else []
        if self._complete and (missing or unexpected):
            raise ValueError(
                f"{self._source}: the checkpoint does not fit the model: {len(missing)} keys are missing or have "
                f"another shape, and {len(unexpected)} are not the model's, such as "
                f"{', '.join([*missing, *unexpected][:3])}. To resume or evaluate, the config has to be the one of the "
                "training (config.yaml in its OUTPUT_DIR)"
            )
        if self._complete and is_resumed and ("ema" in checkpoint) != ("ema" in self.checkpointables):
            has, wants = ("averaged weights", "no") if "ema" in checkpoint else ("no averaged weights", "a")
            raise ValueError(
                f"{self._source}: found {has} in the checkpoint, and {wants} SOLVER.EMA_DECAY; expected both or "
                "neither: to resume, the config has to be the one of the training (config.yaml in its OUTPUT_DIR)"
            )
        return incompatible

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model and checkpointables to ``<name>.pth``; ``last_checkpoint`` names it, unless it is the best."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content |= {key: item.state_dict() for key, item in self.checkpointables.items()} | kwargs
        path = Path(self.save_dir) / f"{name}.pth"
        # One temporary name for all: what a crash leaves behind, the next checkpoint overwrites.
        temporary = path.with_name("checkpoint.tmp")
        torch.save(content, temporary)
        temporary.replace(path)
        logger.info("Saved checkpoint %s", path)
        if name != BEST:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write ``last_checkpoint``, in one piece."""
        path = Path(self.save_dir) / "last_checkpoint"
        temporary = path.with_name("last_checkpoint.tmp")
        temporary.write_text(last_filename_basename, encoding="utf-8")
        temporary.replace(path)
