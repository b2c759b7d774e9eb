"""One training step: accumulation against one large batch, mixed precision, seeding."""

import contextlib

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from implantdet.engine.step import StepTrainer, amp_dtype


class Linear(nn.Module):
    """Mean squared error of a line, and a second loss that is drawn at random."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        nn.init.constant_(self.linear.weight, 0.5)
        nn.init.zeros_(self.linear.bias)
        self.dtypes = []

    def forward(self, batch):
        x = torch.stack([item["x"] for item in batch])
        y = self.linear(x)
        self.dtypes.append(y.dtype)
        return {"loss_fit": ((y.float().squeeze(1) - x.sum(1)) ** 2).mean(), "loss_noise": torch.rand(()) * y.sum() * 0}


def batches(num_batches, size):
    generator = torch.Generator().manual_seed(0)
    return [[{"x": torch.randn(3, generator=generator)} for _ in range(size)] for _ in range(num_batches)]


def train(data, **settings):
    model = Linear()
    trainer = StepTrainer(model, data, torch.optim.AdamW(model.parameters(), lr=0.1), **settings)
    with EventStorage() as storage:
        for trainer.iter in range(len(data)):
            trainer.run_step()
    return model, storage


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_parts_of_a_batch_add_up_to_the_batch(parts):
    whole, whole_storage = train(batches(4, 6))
    split, split_storage = train(batches(4, 6), accumulation_steps=parts)
    torch.testing.assert_close(split.linear.weight, whole.linear.weight)
    torch.testing.assert_close(split.linear.bias, whole.linear.bias)
    expected, _ = whole_storage.latest()["loss_fit"]
    assert split_storage.latest()["loss_fit"][0] == pytest.approx(expected)
    assert len(split.dtypes) == 4 * parts


def test_processes_exchange_gradients_with_the_last_part_alone(monkeypatch):
    passes = []

    class Several(Linear):
        @contextlib.contextmanager
        def no_sync(self):
            passes.append("alone")
            yield

        def forward(self, batch):
            passes.append("pass")
            return super().forward(batch)

    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    model = Several()
    trainer = StepTrainer(model, batches(1, 6), torch.optim.SGD(model.parameters(), lr=0.1), accumulation_steps=3)
    with EventStorage():
        trainer._accumulate(batches(1, 6)[0][:2], is_last=False)
        trainer._accumulate(batches(1, 6)[0][2:4], is_last=True)
        assert passes == ["alone", "pass", "pass"]
        passes.clear()
        monkeypatch.setattr(trainer, "_write_metrics", lambda *_: None)
        trainer.iter = 0
        trainer.run_step()
    assert passes == ["alone", "pass", "alone", "pass", "pass"]


def test_accumulated_gradient_by_hand():
    # Loss of one image: (w·x - s)², gradient 2 (w·x - s) x; here w = (.5, .5, .5), s the sum of x.
    data = [[{"x": torch.tensor([1.0, 0.0, 0.0])}, {"x": torch.tensor([0.0, 2.0, 0.0])}]]
    model = Linear()
    trainer = StepTrainer(model, data, torch.optim.SGD(model.parameters(), lr=1.0), accumulation_steps=2)
    with EventStorage():
        trainer.run_step()
    # Mean of (-1, 0, 0) and (0, -4, 0) is (-0.5, -2, 0).
    assert model.linear.weight.flatten().tolist() == pytest.approx([1.0, 2.5, 0.5])


def test_mixed_precision_on_the_cpu_is_bfloat16_and_keeps_float_weights():
    model, _ = train(batches(2, 4), amp=True)
    assert set(model.dtypes) == {torch.bfloat16}
    assert model.linear.weight.dtype == torch.float32
    full, _ = train(batches(2, 4))
    torch.testing.assert_close(model.linear.weight, full.linear.weight, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [("cpu", None, torch.bfloat16), ("cuda", (7, 5), torch.float16), ("cuda", (8, 0), torch.bfloat16)],
)
def test_type_of_mixed_precision(monkeypatch, device, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert amp_dtype(torch.device(device)) == expected


@pytest.mark.parametrize(
    ("capabilities", "amp", "warned"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True, False),
        ({"architecture": "arm64", "bf16": False}, True, False),
        (None, True, False),
    ],
)
def test_a_cpu_that_emulates_bfloat16_is_named(monkeypatch, caplog, capabilities, amp, warned):
    if capabilities is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    train(batches(1, 2), amp=amp)
    assert ("SOLVER.AMP.ENABLED: this CPU has no instructions for bfloat16" in caplog.text) == warned


def test_randomness_belongs_to_the_iteration():
    data = batches(3, 2)
    _, storage = train(data, seed=7)
    torch.rand(1000)  # whatever else draws in between
    _, again = train(data, seed=7)
    assert storage.history("total_loss").values() == again.history("total_loss").values()


class Noise(Linear):
    def forward(self, batch):
        return {"loss": self.linear.weight.sum() * torch.rand(())}


def test_iterations_and_seeds_draw_differently():
    def losses(seed):
        model = Noise()
        trainer = StepTrainer(model, batches(4, 2), torch.optim.SGD(model.parameters(), lr=0.0), seed=seed)
        with EventStorage() as storage:
            for trainer.iter in range(4):
                trainer.run_step()
                storage.step()
            return [value for value, _ in storage.history("total_loss").values()]

    assert len(set(losses(0) + losses(1))) == 8
    assert losses(0) == losses(0)


def test_a_checkpoint_without_a_scale_of_losses_can_be_resumed_with_one():
    """As when a training goes on on a GPU that needs float16."""
    model, data = Linear(), batches(1, 2)
    unscaled = StepTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1)).state_dict()
    scaled = StepTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    scaled.grad_scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
    before = scaled.grad_scaler.state_dict()
    scaled.load_state_dict(unscaled)
    assert scaled.grad_scaler.state_dict() == before
    scaled.load_state_dict(unscaled | {"grad_scaler": before | {"scale": 2.0}})
    assert scaled.grad_scaler.get_scale() == 2


def test_state_goes_into_a_checkpoint():
    model, data = Linear(), batches(2, 2)
    trainer = StepTrainer(model, data, torch.optim.AdamW(model.parameters(), lr=0.1))
    with EventStorage():
        trainer.run_step()
    other = Linear()
    restored = StepTrainer(other, data, torch.optim.AdamW(other.parameters(), lr=0.9))
    restored.load_state_dict(trainer.state_dict())
    assert restored.optimizer.param_groups[0]["lr"] == 0.1
    state, expected = (next(iter(item.optimizer.state.values()))["exp_avg"] for item in (restored, trainer))
    torch.testing.assert_close(state, expected, rtol=0, atol=0)
