"""How well pre-training uses a GPU: images per second, share of its peak FLOP/s, and the largest batch that fits.

    python benchmarks/mim_gpu.py --peak-tflops 989 [--config pretrain_mde.yaml] [--no-compile]

One step is forward, backward, AdamW (fused) and the target's update, in bf16; the Trainer neither fuses nor compiles.
Floating point operations are those of matrix products and attention, counted on the model without compilation.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from _record import write_result
from mim_speed import COUNTED, build_ours, gflop_per_image
from torch import Tensor, nn

from implantdet.modeling.mim_masking import sample_mask


def build_step(config: str, img_size: int, compiled: bool) -> tuple[nn.Module, Callable[[Tensor], None]]:
    """A model on the GPU, and a function that trains it on a batch of images."""
    model = build_ours(config, img_size).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    losses = torch.compile(model.losses) if compiled else model.losses
    grid = (img_size // 16, img_size // 16)

    def step(images: Tensor) -> None:
        mask = sample_mask(len(images), grid, model.mask_ratio, model.mask_block, images.device)
        with torch.autocast("cuda", torch.bfloat16):
            loss = sum(losses(images, mask).values())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target(1)

    return model, step


def seconds_per_step(step: Callable[[Tensor], None], images: Tensor, steps: int = 20) -> float:
    """Mean over steps after a warm-up."""
    for _ in range(5):
        step(images)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step(images)
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def fits(step: Callable[[Tensor], None], batch_size: int, img_size: int) -> bool:
    """Whether a step on so many images finds enough memory."""
    try:
        for _ in range(2):  # the optimizer's state is there from the second step on
            step(torch.randn(batch_size, 1, img_size, img_size, device="cuda"))
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def largest_batch(step: Callable[[Tensor], None], img_size: int, start: int) -> int:
    """Largest multiple of ``start`` that fits, found by doubling and then by halving the gap."""
    good, bad = 0, start
    while fits(step, bad, img_size):
        good, bad = bad, 2 * bad
    while bad - good > start:
        middle = (good + bad) // 2 // start * start
        good, bad = (middle, bad) if fits(step, middle, img_size) else (good, middle)
    return good


def main() -> None:
    """Measure and write ``results/mim_gpu.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak-tflops", type=float, required=True, help="of the GPU in dense bf16, by its data sheet")
    parser.add_argument("--config", default="pretrain_mde.yaml")
    parser.add_argument("--img-size", type=int, default=416, help="side of the square images, in pixels")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    gflop = gflop_per_image(build_ours(args.config, args.img_size), torch.randn(1, 1, args.img_size, args.img_size))
    result: dict[str, Any] = {"settings": vars(args) | {"counted": COUNTED}, "gflop_per_image": gflop}
    for name, compiled in (("eager", False), ("compiled", True)):
        if compiled and args.no_compile:
            continue
        model, step = build_step(args.config, args.img_size, compiled)
        seconds = seconds_per_step(step, torch.randn(args.batch_size, 1, args.img_size, args.img_size, device="cuda"))
        rate = args.batch_size / seconds
        result[name] = {"images_per_second": rate, "share_of_peak": rate * gflop / 1e3 / args.peak_tflops}
        print(name, result[name], flush=True)
        del model, step
    _, step = build_step(args.config, args.img_size, compiled=False)
    result["largest_batch"] = largest_batch(step, args.img_size, start=64)
    write_result("mim_gpu", result)


if __name__ == "__main__":
    main()
