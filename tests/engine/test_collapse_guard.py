"""The guard: its measures by hand, a run that collapses, and runs that do not."""

import math

import pytest
import torch
from detectron2.engine import TrainerBase

from implantdet.engine.collapse_guard import CollapseGuard, TargetCollapseError, target_spread
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_decoder import build_decoder
from implantdet.modeling.mim_targets import build_target
from implantdet.modeling.vit import ViT

# --- the measures


def test_spread_by_hand():
    """Three images, two positions, four channels."""
    line = torch.tensor([[-1.0, 0, 0, 0], [0, 0, 0, 0], [1.0, 0, 0, 0]])  # one direction
    axes = math.sqrt(3) * torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])  # centred: a triangle
    spread = target_spread(torch.stack([line + 7, axes - 5], dim=1))
    # Variances (divided by N - 1): the line 1 in one of four channels; the triangle 1 in three of four.
    assert math.isclose(spread.std, math.sqrt((1 + 3) / 8), rel_tol=1e-6)
    # Ranks: 1, and 2 equal singular values, so exp(log 2).
    assert math.isclose(spread.effective_rank, (1 + 2) / 2, rel_tol=1e-6)


def test_effective_rank_is_the_entropy_of_singular_values():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(6, 3, 20, generator=generator)
    expected = []
    for position in (targets - targets.mean(dim=0)).unbind(1):
        values = torch.linalg.svdvals(position.double())
        shares = values / values.sum()
        expected.append(math.exp(-sum(p * math.log(p) for p in shares.tolist() if p > 1e-7)))
    assert math.isclose(target_spread(targets).effective_rank, sum(expected) / 3, rel_tol=1e-4)


def test_positions_alone_are_no_spread():
    """What RankMe over all tokens misses: every position has another target, and every image the same."""
    targets = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)).expand(8, -1, -1)
    assert target_spread(targets) == (0.0, 1.0)
    noisy = targets + 1e-3 * torch.randn(8, 16, 32, generator=torch.Generator().manual_seed(1))
    assert target_spread(noisy).std == pytest.approx(1e-3, rel=0.1)
    assert target_spread(noisy).effective_rank > 5


def test_what_is_not_finite_has_no_spread():
    assert all(map(math.isnan, target_spread(torch.full((4, 2, 3), math.nan))))


# --- the guard at work


def radiographs(num_images, seed):
    """Bright rods before smooth noise, (N, 1, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(num_images, 1, 8, 8, generator=generator) * 120
    images = torch.nn.functional.interpolate(coarse, size=64, mode="bilinear")
    for image, left in zip(images, torch.randint(4, 50, (num_images,), generator=generator).tolist(), strict=True):
        image[0, 8:56, left : left + 10] += 120
    return images


class TinyPretraining(TrainerBase):
    """A training without Detectron2's data and checkpoints."""

    def __init__(self, num_steps, lr, model=MaskedImageModel, guard_images=None, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        encoder = ViT(name="test_vit", img_size=64, in_chans=1)
        target = build_target(kwargs.pop("target"), encoder, 1, kwargs.pop("layers", []), kwargs.pop("ema_decay", 0.0))
        decoder = build_decoder(encoder, target.dim, dim=32, depth=1, num_heads=4)
        stats = {"pixel_mean": [100.0], "pixel_std": [50.0]}
        self.model = model(encoder=encoder, decoder=decoder, target=target, **stats, **kwargs).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)
        guard_images = radiographs(8, seed=1) if guard_images is None else guard_images
        self.guard = CollapseGuard(self.model, lambda: guard_images, period=10, min_fraction=0.1)
        self.images = radiographs(64, seed=2)
        self.num_steps = num_steps
        self.register_hooks([self.guard])

    def run_step(self):
        batch = self.images[torch.randint(64, (8,))]
        loss = self.model([{"image": image} for image in batch])["loss_mim"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.update_target(self.iter + 1)

    def train(self):
        super().train(0, self.num_steps)
        return self


class FlowingTargets(MaskedImageModel):
    """Its gradients flow through the target, the encoder's own features: constant features make the loss small."""

    def targets(self, images):
        return self.encoder(images)["last_feat"].flatten(2).mT


def test_guard_stops_a_collapsing_run():
    collapsing = TinyPretraining(60, lr=3e-3, model=FlowingTargets, target="patch_embed")
    with pytest.raises(TargetCollapseError, match=r"after \d+ iterations its std across images .*PIXEL_WEIGHT above 0"):
        collapsing.train()


@pytest.mark.parametrize(
    ("options", "named", "not_named"),
    [
        ({"target": "patch_embed"}, ["PIXEL_WEIGHT above 0", "TARGET pixel"], ["EMA_DECAY", "NORM_TARGET"]),
        (
            {"target": "encoder", "layers": [0], "ema_decay": 0.5, "norm_target": False},
            ["EMA_DECAY nearer to 1 than 0.5", "NORM_TARGET True", "PIXEL_WEIGHT above 0"],
            [],
        ),
        ({"target": "pixel"}, ["BASE_LR"], ["EMA_DECAY", "PIXEL_WEIGHT", "TARGET"]),
    ],
)
def test_the_advice_names_what_this_training_can_change(options, named, not_named):
    trainer = TinyPretraining(1, lr=0.0, **options)
    trainer.guard.before_train()
    trainer.guard.load_state_dict({"start": [1e9, 1e9], "num_images": 8})
    with pytest.raises(TargetCollapseError) as error:
        trainer.train()
    advice = str(error.value).partition("before training. Set ")[2]
    assert all(key in advice for key in named) and not any(key in advice for key in not_named)


class NarrowTargets(MaskedImageModel):
    """Its targets differ from image to image as far as ever, but after the first step along one direction only."""

    def update_target(self, step):
        self.is_narrow = step > 0

    def targets(self, images):
        targets = super().targets(images)
        if not self.is_narrow:
            return targets
        along = (targets - targets.mean(dim=0)).norm(dim=-1, keepdim=True) * torch.ones(targets.shape[-1])
        return along / along.square().mean().sqrt()


def test_guard_stops_a_run_that_diverged():
    class Diverging(MaskedImageModel):
        def targets(self, images):
            return super().targets(images) * (float("nan") if self.training and self.seen else 1.0)

        def forward(self, inputs):
            self.seen = True
            return super().forward(inputs)

        seen = False

    with pytest.raises(TargetCollapseError, match="diverged: after 10 iterations the target is not finite"):
        TinyPretraining(20, 1e-3, model=Diverging, target="encoder", layers=[1], ema_decay=0.9).train()


def test_guard_stops_a_run_whose_target_keeps_one_direction():
    with pytest.raises(TargetCollapseError, match=r"effective_rank across images is 1, expected 1\.\d+ or more, 0\.1"):
        TinyPretraining(2, lr=1e-3, model=NarrowTargets, target="patch_embed").train()


@pytest.mark.parametrize(("factor", "is_collapse"), [(11, True), (9, False)])
def test_of_a_rank_counts_what_is_above_one(factor, is_collapse):
    """A tenth is allowed, of eleven times or of nine times what there is; the standard deviation is as it was."""
    trainer = TinyPretraining(1, lr=0.0, target="patch_embed")
    trainer.guard.before_train()
    std, rank = trainer.guard.state_dict()["start"]
    trainer.guard.load_state_dict({"start": [std, 1 + factor * (rank - 1)], "num_images": 8})
    if is_collapse:
        with pytest.raises(TargetCollapseError, match="its effective_rank across images"):
            trainer.train()
    else:
        trainer.train()


def test_two_images_have_one_direction_and_are_no_collapse():
    """Also if their corner is the same, where they have none."""
    images = radiographs(2, seed=1)
    images[:, :, :16, :16] = 0
    trainer = TinyPretraining(2, lr=1e-3, target="patch_embed", guard_images=images).train()
    assert trainer.storage.latest()["target_effective_rank"][0] == 1


@pytest.mark.parametrize(
    "kwargs", [{"target": "patch_embed"}, {"target": "encoder", "layers": [3, 5], "ema_decay": 0.99}]
)
def test_guard_lets_a_healthy_run_pass(kwargs):
    trainer = TinyPretraining(30, lr=3e-3, **kwargs).train()
    assert trainer.iter == 30
    latest = trainer.storage.latest()
    assert latest["target_std"][0] == trainer.guard.measure().std
    assert latest["target_effective_rank"][0] > 1


def test_guard_compares_with_the_start_also_after_a_resume():
    trainer = TinyPretraining(10, lr=1e-3, target="patch_embed", norm_target=False).train()
    start = trainer.guard.state_dict()["start"]
    resumed = TinyPretraining(10, lr=1e-3, target="patch_embed", norm_target=False)
    resumed.guard.load_state_dict({"start": [1000 * value for value in start], "num_images": 8})
    with pytest.raises(TargetCollapseError, match=f"to the {1000 * start[0]:.3g} before training"):
        resumed.train()


def test_a_rank_of_other_images_is_no_start(caplog):
    """Of three images the rank is two at most: against that of eight, they would always be a collapse."""
    trainer = TinyPretraining(10, lr=1e-3, target="patch_embed").train()
    resumed = TinyPretraining(10, lr=1e-3, target="patch_embed", guard_images=radiographs(3, seed=1))
    resumed.guard.load_state_dict(trainer.guard.state_dict() | {"start": [1e9, 1e9]})
    assert resumed.train().iter == 10
    assert "was that of 8 images, now there are 3" in caplog.text
    assert resumed.guard.state_dict()["num_images"] == 3


@pytest.mark.parametrize(("period", "fraction"), [(0, 0.1), (1, 1.0), (1, -0.1)])
def test_wrong_settings_are_named(period, fraction):
    with pytest.raises(ValueError, match=f"GUARD_PERIOD {period} and GUARD_FRACTION {fraction}"):
        CollapseGuard(None, None, period, fraction)
