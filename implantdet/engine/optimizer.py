"""AdamW with layer-wise learning-rate decay, and weight decay for matrices and kernels only."""

from __future__ import annotations

import re

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping, reduce_param_groups
from timm.utils import unwrap_model
from torch import nn

from implantdet.modeling.vit import ViT

# Positions and the tokens that are added to the patches: they are embeddings, not transforms.
_EMBEDDINGS = ("pos_embed", "cls_token", "reg_token", "mask_token")


def build_adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW as ViTDet does (arXiv:2203.16527, appendix A.2), clipping gradients by ``SOLVER.CLIP_GRADIENTS``.

    A ViT block learns ``SOLVER.LAYER_DECAY`` times as fast as the block above it, the patch embedding, the tokens and a
    norm before the blocks once more so; everything outside the ViT, and its final norm, learns with ``SOLVER.BASE_LR``.

    Args:
        cfg: with the keys of ``add_implantdet_config``.
        model: with its ViT in ``model.backbone``; it may be wrapped for several processes, or compiled.

    Raises:
        ValueError: the ViT is elsewhere in the model, and ``SOLVER.LAYER_DECAY`` is not 1; or a key of Detectron2 is
            set that is not read here.
    """
    for key, usual in (("WEIGHT_DECAY_NORM", 0.0), ("WEIGHT_DECAY_BIAS", None), ("BIAS_LR_FACTOR", 1.0)):
        if cfg.SOLVER[key] not in (usual, 0.0 if usual is None else usual):
            raise ValueError(
                f"SOLVER.{key}: found {cfg.SOLVER[key]}, expected its default {usual}: biases and norms have no weight "
                "decay, and the learning rate of their layer"
            )
    model = unwrap_model(model)
    depth = num_blocks(model)
    elsewhere = [name for name, module in model.named_modules() if isinstance(module, ViT)]
    if cfg.SOLVER.LAYER_DECAY != 1 and elsewhere and not depth:
        raise ValueError(
            f"SOLVER.LAYER_DECAY is {cfg.SOLVER.LAYER_DECAY}: found the ViT in {elsewhere[0] or 'the model itself'!r}, "
            "expected it in 'backbone'; name it so, or set SOLVER.LAYER_DECAY 1"
        )

    def lr_factor(name: str) -> float:
        # Detectron2 knows the positions, but neither tokens nor a norm before the first block, at the same place.
        name = re.sub(r"\.((cls|reg|mask)_token|norm_pre\.\w+)$", ".pos_embed", name)
        return get_vit_lr_decay_rate(name, cfg.SOLVER.LAYER_DECAY, depth)

    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        lr_factor_func=lr_factor,
        overrides={name: {"weight_decay": 0.0} for name in _EMBEDDINGS},
    )
    # Vectors are the biases and the norms of every kind; get_default_optimizer_params knows torch's norms only.
    matrices = [{**group, "params": [p for p in group["params"] if p.ndim > 1]} for group in groups]
    vectors = [{**group, "params": [p for p in group["params"] if p.ndim <= 1]} for group in groups]
    for group in vectors:
        group["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(
        reduce_param_groups(matrices + vectors), lr=cfg.SOLVER.BASE_LR, betas=tuple(cfg.SOLVER.BETAS)
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


def num_blocks(model: nn.Module) -> int:
    """Number of ViT blocks in ``model.backbone``; 0 if it is no ViT."""
    indices = [re.match(r"backbone\..*\bblocks\.(\d+)\.", name) for name, _ in model.named_parameters()]
    return max((int(match[1]) + 1 for match in indices if match), default=0)
