"""Averaged weights against the formula, validation loss, the best checkpoint, the printed line."""

import logging

import pytest
import torch
from detectron2.utils.events import EventStorage
from timm.utils import ModelEmaV3
from torch import nn

from implantdet.engine.hooks import BestCheckpointer, Evaluation, ProgressPrinter, ValidationLoss, WeightAveraging


class FakeTrainer:
    """As much of a trainer as a hook sees."""

    def __init__(self, max_iter=100):
        self.iter = 0
        self.max_iter = max_iter
        self.storage = EventStorage()


def test_averaged_weights_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = ModelEmaV3(model, decay=0.6, use_warmup=True)
    hook = WeightAveraging(average, model)
    hook.trainer = FakeTrainer()
    weights = [1.0, 3.0, -2.0, 4.0, 0.5, 7.0]
    expected = None
    for hook.trainer.iter, weight in enumerate(weights):
        nn.init.constant_(model.weight, weight)
        hook.after_step()
        # Step s = iter + 1 decays by min(0.6, 1 - (1 + (s - 1)) ** (-2/3)); the first step copies.
        decay = min(0.6, 1 - (1 + hook.trainer.iter) ** (-2 / 3))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        assert average.module.weight.item() == pytest.approx(expected)
    assert decay == 0.6  # the warm-up is over


class Detector(nn.Module):
    """Loss 1 per image of value 1, …; the backbone is an identity while it is in inference mode."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        assert self.training
        assert not torch.is_grad_enabled()
        values = self.backbone(torch.tensor([item["value"] for item in batch]))
        return {"loss_a": self.weight * values.mean(), "loss_b": 0 * torch.rand(())}


def test_validation_loss_is_the_mean_over_images_and_leaves_no_trace():
    model = Detector().eval()
    loader = [[{"value": 1.0}, {"value": 2.0}], [{"value": 6.0}]]
    hook = ValidationLoss(5, model, lambda: loader)
    hook.trainer = FakeTrainer(max_iter=12)
    with hook.trainer.storage as storage:
        for hook.trainer.iter in range(12):
            storage.iter = hook.trainer.iter
            hook.after_step()
        values = storage.history("validation_loss").values()
        assert set(storage.histories()) == {"validation_loss"}
    assert values == [(3.0, 4), (3.0, 9), (3.0, 11)]  # every 5 iterations and at the end
    assert not model.training
    assert not model.backbone.training
    assert model.weight.grad is None


@pytest.mark.parametrize(("failed_at", "expected"), [(None, [2, 3]), (1, []), (2, [2])])
def test_a_training_that_failed_is_not_evaluated_at_its_end(failed_at, expected):
    """Nor in its last step, after which Detectron2's own hook takes it for complete."""
    trainer, evaluated = FakeTrainer(max_iter=3), []
    hook = Evaluation(2, lambda: evaluated.append(trainer.iter + (trainer.iter < 3)))
    hook.trainer = trainer
    with trainer.storage:
        for trainer.iter in range(3):  # as TrainerBase.train does
            if trainer.iter == failed_at:
                break
            hook.after_step()
        else:
            trainer.iter += 1
        hook.after_train()
    assert evaluated == expected


def test_best_value_survives_a_resume():
    hook = BestCheckpointer(1, checkpointer=None, val_metric="bbox/AP")
    assert hook.state_dict() == {}
    hook._update_best(31.5, 7)
    resumed = BestCheckpointer(1, checkpointer=None, val_metric="bbox/AP")
    resumed.load_state_dict(hook.state_dict())
    assert (resumed.best_metric, resumed.best_iter) == (31.5, 7)


def test_printed_line_has_eta_losses_and_images_per_second(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with EventStorage() as storage, caplog.at_level(logging.INFO, logger="detectron2"):
        for _ in range(3):
            storage.put_scalars(time=0.5, total_loss=1.25, validation_loss=2.5)
            storage.step()
        ProgressPrinter(max_iter=103, ims_per_batch=8).write()
        assert storage.latest()["[metric]images_per_second"][0] == 16.0
    (line,) = {record.message for record in caplog.records}  # once for every logger on its way up that is watched
    for part in ("eta: 0:00:49", "iter: 3", "total_loss: 1.25", "validation_loss: 2.5", "images_per_second: 16"):
        assert part in line
