"""Speed of a pre-training step (forward and backward) against transformers.ViTMAEForPreTraining, on the CPU.

    python benchmarks/mim_speed.py

`ours_equal` has the same encoder (ViT-B/16), decoder (8 blocks of 512 channels), mask ratio (75 %) and precision, which
are transformers' defaults too; `ours_mde_default` and `ours_mae_default` are configs/pretrain_mde.yaml and
pretrain_mae.yaml as they are, with the target's update. All sides run in one process, on the same images, and take
turns. `gflop_per_image` is counted, not timed: `counted` says what.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from _record import write_result
from backbone_speed import compare
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from implantdet.config import add_implantdet_config
from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_masking import sample_mask

SEED = 0
COUNTED = "matrix products and attention"
CONFIGS = Path(__file__).parents[1] / "configs"
# The published decoder and ratio, which are transformers' defaults too.
EQUAL = (
    *("MODEL.MIM.TARGET", "pixel", "MODEL.MIM.PIXEL_WEIGHT", "0.0", "MODEL.MIM.MASK_RATIO", "0.75"),
    *("MODEL.MIM.DECODER_DEPTH", "8", "MODEL.MIM.DECODER_DIM", "512", "MODEL.MIM.DECODER_HEADS", "16"),
)


def build_transformers(img_size: int) -> nn.Module:
    """MAE with a ViT-B/16 encoder, of transformers, for one grey channel."""
    config = ViTMAEConfig(image_size=img_size, num_channels=1, norm_pix_loss=True, mask_ratio=0.75, layer_norm_eps=1e-6)
    return ViTMAEForPreTraining(config)


def build_ours(config: str, img_size: int, *opts: str) -> nn.Module:
    """A model of ours by its config file."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.VIT.IMG_SIZE", str(img_size), *opts])
    return build_model(cfg)


def step(model: nn.Module, images: Tensor) -> None:
    """One step of training, less the optimizer."""
    model.train()
    if isinstance(model, MaskedImageModel):
        grid = (images.shape[-2] // 16, images.shape[-1] // 16)
        mask = sample_mask(len(images), grid, model.mask_ratio, model.mask_block)
        sum(model.losses(images, mask).values()).backward()
        model.update_target(1)
    else:
        model(pixel_values=images).loss.backward()
    model.zero_grad()


def gflop_per_image(model: nn.Module, images: Tensor) -> float:
    """Floating point operations of a step, 10⁹ per image: matrix products and attention."""
    # The counter takes the CPU's fused attention for nothing; taken apart, it is two matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step(model, images)
    return counter.get_total_flops() / len(images) / 1e9


def main() -> None:
    """Measure and write ``results/mim_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds, after one that warms up")
    parser.add_argument("--img-size", type=int, default=416, help="side of the square images, in pixels")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(SEED)
    images = torch.randn(args.batch_size, 1, args.img_size, args.img_size)
    sides: dict[str, nn.Module] = {
        "transformers": build_transformers(args.img_size),
        "ours_equal": build_ours("pretrain_mae.yaml", args.img_size, *EQUAL),
        "ours_mde_default": build_ours("pretrain_mde.yaml", args.img_size),
        "ours_mae_default": build_ours("pretrain_mae.yaml", args.img_size),
    }
    gflop = {name: gflop_per_image(model, images) for name, model in sides.items()}
    result: dict[str, Any] = {"settings": vars(args) | {"seed": SEED, "precision": "float32", "counted": COUNTED}}
    times = compare(sides, step, images, args.rounds)
    result["sides"] = {name: summary | {"gflop_per_image": gflop[name]} for name, summary in times.items()}
    for name, side in result["sides"].items():
        print(
            f"{name}: {side['images_per_second']:.3f} images/s, {side['gflop_per_image']:.0f} GFLOP per image, "
            f"{side['speedup_median_over_rounds']:.2f} × transformers"
        )
    write_result("mim_speed", result)


if __name__ == "__main__":
    main()
