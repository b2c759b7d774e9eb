"""Which parameter learns how fast, and which one decays: counted by hand on a small ViT."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers.batch_norm import LayerNorm as ChannelLayerNorm
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch import nn

from implantdet.config import add_implantdet_config
from implantdet.engine.optimizer import build_adamw, num_blocks
from implantdet.modeling.vit import ViT

LAYER_DECAY, LR = 0.5, 0.01


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.SOLVER.BASE_LR = LR
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.LAYER_DECAY = LAYER_DECAY
    return cfg


class Net(nn.Module):
    """Names as in our ViT: two blocks under tokens and positions."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = net = nn.Module()
        net.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        net.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        net.patch_embed = nn.Conv2d(1, 4, 2)
        net.norm_pre = nn.LayerNorm(4)
        net.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        net.norm = nn.LayerNorm(4)
        self.backbone.simfp_2 = nn.Sequential(nn.Conv2d(4, 4, 1), ChannelLayerNorm(4))
        self.head = nn.Linear(4, 2)


def settings(model, optimizer):
    """Learning rate and weight decay by the name of the parameter."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {
        name: (groups[id(parameter)]["lr"], groups[id(parameter)]["weight_decay"])
        for name, parameter in model.named_parameters()
    }


def test_rates_and_decay_of_every_parameter(cfg):
    model = Net()
    optimizer = build_adamw(cfg, model)
    found = settings(model, optimizer)
    # Layers: 0 patches, positions, tokens; 1 and 2 blocks; 3 everything above.
    expected = {
        "backbone.net.cls_token": (LR / 8, 0),
        "backbone.net.pos_embed": (LR / 8, 0),
        "backbone.net.patch_embed.weight": (LR / 8, 0.05),
        "backbone.net.patch_embed.bias": (LR / 8, 0),
        "backbone.net.norm_pre.weight": (LR / 8, 0),
        "backbone.net.norm_pre.bias": (LR / 8, 0),
        "backbone.net.blocks.0.weight": (LR / 4, 0.05),
        "backbone.net.blocks.0.bias": (LR / 4, 0),
        "backbone.net.blocks.1.weight": (LR / 2, 0.05),
        "backbone.net.blocks.1.bias": (LR / 2, 0),
        "backbone.net.norm.weight": (LR, 0),
        "backbone.net.norm.bias": (LR, 0),
        "backbone.simfp_2.0.weight": (LR, 0.05),
        "backbone.simfp_2.0.bias": (LR, 0),
        "backbone.simfp_2.1.weight": (LR, 0),  # a norm that torch does not know
        "backbone.simfp_2.1.bias": (LR, 0),
        "head.weight": (LR, 0.05),
        "head.bias": (LR, 0),
    }
    assert found == expected  # halves are exact
    assert len(optimizer.param_groups) == 8  # as few as there are settings
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_every_parameter_of_the_detector_is_optimised_once(tiny_cfg):
    model = build_model(tiny_cfg())
    optimizer = build_adamw(tiny_cfg(), model)
    optimised = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for p in model.parameters())
    assert num_blocks(model) == 6


@pytest.mark.parametrize(
    ("key", "value"), [("WEIGHT_DECAY_NORM", 0.1), ("WEIGHT_DECAY_BIAS", 0.1), ("BIAS_LR_FACTOR", 2.0)]
)
def test_keys_of_detectron2_that_are_not_read_are_refused(cfg, key, value):
    cfg.SOLVER[key] = value
    with pytest.raises(ValueError, match=rf"SOLVER\.{key}: found {value}, expected its default"):
        build_adamw(cfg, Net())


def test_no_blocks_no_layer_decay(cfg):
    model = nn.ModuleDict({"backbone": nn.Conv2d(1, 2, 1), "head": nn.Linear(2, 2)})
    assert num_blocks(model) == 0
    assert {rate for rate, _ in settings(model, build_adamw(cfg, model)).values()} == {LR}


def test_first_step_of_adamw_by_hand(cfg):
    # Bias correction makes the first step the sign of the gradient; decay comes off separately.
    cfg.SOLVER.LAYER_DECAY = 1.0
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(3.0)
    optimizer = build_adamw(cfg, model)
    (model(torch.ones(1, 1)) * 7).sum().backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 * (1 - LR * 0.05) - LR)
    assert model.bias.item() == pytest.approx(3.0 - LR)


def test_clipping(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    model = nn.Linear(2, 1, bias=False)
    optimizer = build_adamw(cfg, model)
    model.weight.grad = torch.tensor([[30.0, 40.0]])
    optimizer.step()
    assert model.weight.grad.flatten().tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("warmup_iters", [0, 4])
def test_warm_up_and_cosine_by_hand(cfg, warmup_iters):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 10, warmup_iters, 0.001
    optimizer = build_adamw(cfg, nn.Linear(1, 1, bias=False))
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        scheduler.step()

    def cosine(iteration):
        return 0.5 * (1 + math.cos(math.pi * iteration / 10))

    # The warm-up is a straight line from 0.001 to where the cosine takes over.
    line = [0.001 + (cosine(warmup_iters) - 0.001) * i / max(1, warmup_iters) for i in range(warmup_iters)]
    assert rates == pytest.approx(line + [cosine(i) for i in range(warmup_iters, 10)])


def test_a_wrapped_model_learns_as_the_model_alone(cfg):
    model = Net()
    alone, wrapped = (settings(model, build_adamw(cfg, given)) for given in (model, nn.DataParallel(model)))
    assert wrapped == alone
    assert alone["backbone.net.blocks.0.weight"][0] < LR


def test_a_vit_elsewhere_is_refused_but_without_decay(cfg):
    model = nn.Module()
    model.encoder = ViT(name="test_vit", img_size=64, in_chans=1)
    with pytest.raises(ValueError, match=r"LAYER_DECAY is 0\.5: found the ViT in 'encoder', expected it in 'backbone'"):
        build_adamw(cfg, model)
    cfg.SOLVER.LAYER_DECAY = 1.0
    assert {lr for lr, _ in settings(model, build_adamw(cfg, model)).values()} == {LR}
