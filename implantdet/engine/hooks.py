"""Hooks of the Trainer that Detectron2 does not have."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventStorage, get_event_storage
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from implantdet.data.files import written_whole
from implantdet.data.idd import read_json, write_json
from implantdet.engine.loader import kept_randomness, seed_everything


class WeightAveraging(HookBase):
    """Updates the moving average of the weights after every step of the optimizer.

    The average starts as a copy of the weights, and its decay grows with the steps up to the given one, so that short
    trainings do not keep their random start in it.

    Args:
        average: timm's average of ``model``, with ``use_warmup``.
        model: the model that is trained, not wrapped.
    """

    def __init__(self, average: ModelEmaV3, model: nn.Module) -> None:
        self._average = average
        self._model = model

    def after_step(self) -> None:
        """Take in the weights of this step; the first step is 1."""
        self._average.update(self._model, step=self.trainer.iter + 1)


class ValidationLoss(HookBase):
    """Computes the training loss on validation data before every evaluation, as the scalar ``validation_loss``.

    Gradients are off, and the backbone is in inference mode (no drop path). Proposals are sampled by one seed, so that
    values can be compared. The training itself does not notice: its random numbers go on where they were.

    Args:
        period: iterations between evaluations; the last iteration is evaluated in any case.
        model: with a ``backbone``; the loss is the sum of what it returns in training mode.
        build_loader: function that returns batches with ground truth, each process a share of them.
    """

    def __init__(
        self, period: int, model: nn.Module, build_loader: Callable[[], Iterable[list[dict[str, Any]]]]
    ) -> None:
        self._period = period
        self._model = model
        self._build_loader = build_loader

    def after_step(self) -> None:
        """Compute the loss, if it is time."""
        next_iter = self.trainer.iter + 1
        if next_iter % self._period == 0 or next_iter == self.trainer.max_iter:
            loss = self.compute()
            if comm.is_main_process():
                self.trainer.storage.put_scalar("validation_loss", loss, smoothing_hint=False)

    @torch.no_grad()
    def compute(self) -> float:
        """Mean of the loss over the images of all processes; 0 on other processes than the main one."""
        was_training = self._model.training
        self._model.train()
        self._model.get_submodule("backbone").eval()
        for module in self._model.modules():
            if isinstance(module, _BatchNorm):  # whose statistics would take in the images
                module.eval()
        total, count = 0.0, 0
        # It takes what the model's parts would write into the storage of the training; at 0, VIS_PERIOD would draw.
        with EventStorage(1), kept_randomness():
            for batch in self._build_loader():
                seed_everything(0)
                total += float(sum(self._model(batch).values())) * len(batch)
                count += len(batch)
        self._model.train(was_training)
        gathered = comm.gather((total, count))
        return sum(total for total, _ in gathered) / max(1, sum(count for _, count in gathered)) if gathered else 0.0


class Evaluation(hooks.EvalHook):
    """Detectron2's, without an evaluation after a last step that failed: its results would stand for a training."""

    def after_train(self) -> None:
        """Evaluate, if the training came to its end."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's, which after a resume still knows the best value so far.

    It stands in a JSON file beside the best checkpoint. The checkpoint to resume from is older than the evaluation of
    its own iteration, which is not repeated.
    """

    _compared = 0  # iterations before the evaluation that was looked at last

    def before_train(self) -> None:
        """Read the best value, or forget that of an earlier training."""
        if self.trainer.start_iter == 0:
            self._record.unlink(missing_ok=True)
        elif self._record.is_file():
            best = read_json(self._record)
            self.best_metric, self.best_iter = best["value"], best["iteration"]
            self._compared = best.get("compared", 0)

    def after_train(self) -> None:
        """Look at the last evaluation, but not again if a finished training is resumed: its settings may be others."""
        if self._compared < self.trainer.max_iter:
            super().after_train()

    def _best_checking(self) -> None:
        super()._best_checking()
        if self.best_metric is not None:
            best = {"metric": self._val_metric, "value": float(self.best_metric), "iteration": int(self.best_iter)}
            write_json(self._record, best | {"compared": self.trainer.iter})

    @property
    def _record(self) -> Path:
        return Path(self._checkpointer.save_dir) / f"{self._file_prefix}.json"


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's, which after a resume still deletes what is older than the last ``max_to_keep`` checkpoints."""

    def before_train(self) -> None:
        """Find those that the training has written so far."""
        super().before_train()
        if self.max_to_keep is None:  # all of them
            return
        found = sorted(Path(self.checkpointer.save_dir).glob(f"{self.file_prefix}_{'[0-9]' * 7}.pth"))
        written = [path for path in found if int(path.stem[-7:]) < self.trainer.start_iter]
        for path in written[: -self.max_to_keep]:
            path.unlink()
        self.recent_checkpoints = [str(path) for path in written[-self.max_to_keep :]]

    def after_train(self) -> None:
        """Give a training that was interrupted after its last iteration, or is made shorter, its final checkpoint."""
        if self.trainer.start_iter < self.trainer.max_iter:
            return
        last = Path(self.checkpointer.get_checkpoint_file())
        final = last.with_name(f"{self.file_prefix}_final.pth")
        if last != final:
            with written_whole(final) as temporary:
                shutil.copyfile(last, temporary)
            self.checkpointer.tag_last_checkpoint(final.name)


class ProgressPrinter(CommonMetricPrinter):
    """Detectron2's line of ETA, losses and times, and the images per second over all processes.

    Args:
        max_iter: length of the training.
        ims_per_batch: images per iteration over all processes.
    """

    def __init__(self, max_iter: int, ims_per_batch: int) -> None:
        super().__init__(max_iter)
        self._ims_per_batch = ims_per_batch

    def write(self) -> None:
        """Print the line, with a scalar that the other writers record too."""
        storage = get_event_storage()
        if "time" in storage.histories() and storage.iter < self._max_iter:  # not once more after the end
            seconds = storage.history("time").median(self._window_size)
            # Detectron2 prints the scalars that carry this mark.
            storage.put_scalar("[metric]images_per_second", self._ims_per_batch / seconds, smoothing_hint=False)
        super().write()
