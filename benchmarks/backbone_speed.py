"""Speed of our ViT-B backbone against detectron2's ViTDet-B, and the memory that a whole panoramic radiograph takes.

    python benchmarks/backbone_speed.py

Speed: the same image size, batch, pyramid and threads on all sides, in one process; the sides take turns, so that a
slower spell of the machine meets all of them. `ours_windows` has ViTDet's own windows and global blocks; `ours` is the
default, where every block sees the whole image.

Memory: each setting in a process of its own, since a peak cannot be reset.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _memory import peak_gib
from _record import write_result
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from detectron2.modeling.backbone.vit import ViT as DetectronViT
from torch import Tensor, nn

from implantdet.modeling.backbone import build_pyramid
from implantdet.modeling.vit import ViT

SEED = 0
CHANNELS = 256  # of the pyramid
WINDOW_SIZE = 14
GLOBAL_BLOCKS = (2, 5, 8, 11)
PANORAMIC = (1440, 2944)  # height and width in pixels
PANORAMIC_SETTINGS = {
    "forward, windows": {"window_size": WINDOW_SIZE},
    "forward, all blocks global": {},
    "forward + backward, windows, checkpointing": {"window_size": WINDOW_SIZE, "train": True, "checkpointing": True},
}


def build_ours(img_size: int, in_chans: int = 3, **options: Any) -> Backbone:
    """Our ViT-B with its pyramid; ``options`` are those of ``ViT``."""
    vit = ViT(
        name="vit_base_patch16_224",
        img_size=img_size,
        in_chans=in_chans,
        drop_path_rate=0.1,
        global_blocks=GLOBAL_BLOCKS,
        **options,
    )
    return build_pyramid(vit, CHANNELS)


def build_vitdet(img_size: int) -> Backbone:
    """ViTDet-B as in detectron2's projects/ViTDet/configs/common/models/mask_rcnn_vitdet.py, at our image size."""
    net = DetectronViT(
        img_size=img_size,
        embed_dim=768,
        depth=12,
        num_heads=12,
        drop_path_rate=0.1,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        window_size=WINDOW_SIZE,
        window_block_indexes=[index for index in range(12) if index not in GLOBAL_BLOCKS],
        use_rel_pos=True,
    )
    return SimpleFeaturePyramid(
        net=net,
        in_feature="last_feat",
        out_channels=CHANNELS,
        scale_factors=(4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        norm="LN",
        square_pad=img_size,
    )


def forward(model: Backbone, images: Tensor) -> None:
    """One step of inference."""
    with torch.inference_mode():
        model.eval()(images)


def forward_backward(model: Backbone, images: Tensor) -> None:
    """One step of training, less the optimizer."""
    sum(feature.mean() for feature in model.train()(images).values()).backward()
    model.zero_grad()


def compare(models: dict[str, Backbone], step: Callable[[Backbone, Tensor], None], images: Tensor, rounds: int) -> dict:
    """Time one step of every model in turns, after a warm-up; the first model is the reference."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_ in range(rounds + 1):
        for name, model in models.items():
            start = time.perf_counter()
            step(model, images)
            if round_:
                seconds[name].append(time.perf_counter() - start)
        print(f"  round {round_} of {rounds}", flush=True)
    reference = next(iter(seconds.values()))
    return {name: summarise(times, reference, len(images)) for name, times in seconds.items()}


def summarise(times: list[float], reference: list[float], batch_size: int) -> dict[str, Any]:
    """Median and spread of one side, and its speed as a multiple of the reference's."""
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "seconds": times,
        "median_seconds": quartiles[1],
        "quartiles_seconds": [quartiles[0], quartiles[2]],
        "images_per_second": batch_size / quartiles[1],
        # Each round against the reference in the same round.
        "speedup_median_over_rounds": statistics.median(r / t for r, t in zip(reference, times, strict=True)),
        "speedup_of_fastest": min(reference) / min(times),
    }


def panoramic(setting: str) -> dict[str, float]:
    """Run one panoramic radiograph in this process: seconds, and the peak of resident memory."""
    options = dict(PANORAMIC_SETTINGS[setting])
    step = forward_backward if options.pop("train", False) else forward
    torch.manual_seed(SEED)
    model, images = build_ours(416, in_chans=1, **options), torch.randn(1, 1, *PANORAMIC)
    before = peak_gib()
    start = time.perf_counter()
    step(model, images)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gib": peak_gib(), "peak_before_the_step_gib": before}


def panoramic_in_own_process(setting: str) -> dict[str, Any]:
    """``panoramic`` in a new process, or how that process ended."""
    print(f"panoramic, {setting}", flush=True)
    result = subprocess.run(
        [sys.executable, __file__, "--panoramic", setting], stdout=subprocess.PIPE, text=True, check=False
    )
    if result.returncode:
        return {"failed_with_exit_code": result.returncode}  # -9: killed for lack of memory
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Measure both and write ``results/backbone_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds, after one that warms up")
    parser.add_argument("--img-size", type=int, default=416, help="side of the square images, in pixels")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--panoramic", choices=PANORAMIC_SETTINGS, help="run this one setting and print its memory")
    args = parser.parse_args()
    if args.panoramic:
        print(json.dumps(panoramic(args.panoramic)))
        return

    torch.manual_seed(SEED)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
    models = {
        "detectron2_vitdet": build_vitdet(args.img_size),
        "ours_windows": build_ours(args.img_size, window_size=WINDOW_SIZE),
        "ours": build_ours(args.img_size),
    }
    result: dict[str, Any] = {"settings": vars(args) | {"seed": SEED, "threads": torch.get_num_threads()}}
    for name, step in (("forward", forward), ("forward_backward", forward_backward)):
        print(name)
        result[name] = compare(models, step, images, args.rounds)
        for side, times in result[name].items():
            print(f"  {side}: {times['median_seconds']:.3f} s, {times['speedup_median_over_rounds']:.2f} × as fast")
    del models
    result["panoramic"] = {setting: panoramic_in_own_process(setting) for setting in PANORAMIC_SETTINGS}
    for setting, usage in result["panoramic"].items():
        print(f"  {setting}: {usage}")
    write_result("backbone_speed", result)


if __name__ == "__main__":
    main()
