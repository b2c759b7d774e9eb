"""Averaged weights against the formula, validation loss, the best checkpoint, the printed line."""

import json
import logging
import random

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from timm.utils import ModelEmaV3
from torch import nn

from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.hooks import (
    BestCheckpointer,
    Evaluation,
    PeriodicCheckpointer,
    ProgressPrinter,
    ValidationLoss,
    WeightAveraging,
)


class FakeTrainer:
    """As much of a trainer as a hook sees."""

    def __init__(self, max_iter=100, start_iter=0):
        self.iter = self.start_iter = start_iter
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
        self.norm = nn.BatchNorm1d(1)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        assert self.training
        self.norm(torch.tensor([[item["value"]] for item in batch]))
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
    assert model.norm.running_mean.item() == 0 and model.norm.num_batches_tracked.item() == 0


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


def test_the_best_value_survives_a_resume(tmp_path):
    """Also that of the last evaluation, which comes after the checkpoint that is resumed."""

    def run(values, start_iter=0):
        model = nn.Linear(1, 1)
        hook = BestCheckpointer(1, Checkpointer(model, str(tmp_path)), "bbox/AP")
        hook.trainer = FakeTrainer(start_iter=start_iter)
        hook.before_train()
        with hook.trainer.storage as storage:
            for hook.trainer.iter, value in enumerate(values, start=start_iter):
                storage.iter = hook.trainer.iter
                nn.init.constant_(model.weight, value)
                storage.put_scalar("bbox/AP", value)
                hook.after_step()
        return torch.load(tmp_path / "model_best.pth", weights_only=True)["model"]["weight"].item()

    assert run([50.0]) == 50
    assert run([30.0, 20.0], start_iter=1) == 50
    assert run([60.0, 40.0], start_iter=3) == 60
    assert run([55.0], start_iter=5) == 60
    best = json.loads((tmp_path / "model_best.json").read_text(encoding="utf-8"))
    assert best == {"metric": "bbox/AP", "value": 60.0, "iteration": 3, "compared": 5}
    assert run([10.0]) == 10  # another training begins


@pytest.mark.parametrize(("compared", "is_best"), [(8, True), (9, False)])
def test_the_last_evaluation_is_compared_once(tmp_path, compared, is_best):
    """A training that was killed in it compares it after a resume; one that has ended is perhaps calibrated anew."""
    best = {"metric": "bbox/AP", "value": 60.0, "iteration": 3, "compared": compared}
    (tmp_path / "model_best.json").write_text(json.dumps(best), encoding="utf-8")
    hook = BestCheckpointer(1, Checkpointer(nn.Linear(1, 1), str(tmp_path)), "bbox/AP")
    hook.trainer = FakeTrainer(start_iter=9, max_iter=9)
    hook.before_train()
    with hook.trainer.storage as storage:
        storage.put_scalar("bbox/AP", 70.0)
        hook.after_train()
    assert (tmp_path / "model_best.pth").exists() == is_best


@pytest.mark.parametrize("max_iter", [4, 3])
def test_a_training_that_has_no_iteration_left_gets_its_final_checkpoint(tmp_path, max_iter):
    """It was interrupted after its last iteration, or is made shorter."""
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("model_0000003", iteration=3)
    (tmp_path / "model_final.pth").write_bytes(b"of an earlier training")
    hook = PeriodicCheckpointer(checkpointer, 1, max_to_keep=2)
    hook.trainer = FakeTrainer(start_iter=4, max_iter=max_iter)
    hook.before_train()
    hook.after_train()
    assert (tmp_path / "model_final.pth").read_bytes() == (tmp_path / "model_0000003.pth").read_bytes()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_final.pth")
    hook.trainer = FakeTrainer(start_iter=4, max_iter=9)  # an interruption is no end
    (tmp_path / "model_final.pth").unlink()
    checkpointer.tag_last_checkpoint("model_0000003.pth")
    hook.after_train()
    assert not (tmp_path / "model_final.pth").exists()


def test_after_a_resume_the_last_two_checkpoints_are_kept(tmp_path):
    def run(start_iter, end):
        hook = PeriodicCheckpointer(Checkpointer(nn.Linear(1, 1), str(tmp_path)), 1, max_to_keep=2)
        hook.trainer = FakeTrainer(start_iter=start_iter)
        hook.before_train()
        for hook.trainer.iter in range(start_iter, end):
            hook.after_step()
        return [path.stem for path in sorted(tmp_path.glob("model_*.pth"))]

    assert run(0, 4) == ["model_0000002", "model_0000003"]
    assert run(4, 5) == ["model_0000003", "model_0000004"]
    (tmp_path / "model_best.pth").touch()
    assert run(4, 7) == ["model_0000005", "model_0000006", "model_best"]  # the checkpoint of 3 was resumed
    for iteration in range(4):  # of earlier resumes
        (tmp_path / f"model_{iteration:07d}.pth").touch()
    assert run(7, 8) == ["model_0000006", "model_0000007", "model_best"]


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


def test_the_random_numbers_of_a_training_go_on_where_they_were():
    hook = ValidationLoss(1, Detector(), lambda: [[{"value": 1.0}]])
    hook.trainer = FakeTrainer()
    draws = []
    for evaluated in (False, True):
        torch.manual_seed(3), np.random.seed(3), random.seed(3)
        if evaluated:
            hook.compute()
        draws.append((torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()))
    assert draws[0] == draws[1]


def test_a_checkpointer_without_a_limit_keeps_all(tmp_path):
    hook = PeriodicCheckpointer(Checkpointer(nn.Linear(1, 1), str(tmp_path)), 10)
    hook.trainer = FakeTrainer()
    hook.before_train()
    for hook.trainer.iter in range(100):
        hook.after_step()
    assert len(list(tmp_path.glob("model_0*.pth"))) == 10
