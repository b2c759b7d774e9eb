"""Throughput of training and inference at 416 px: our detector beside Detectron2's Mask R-CNN on its own ViTDet-B.

    python benchmarks/head_speed.py [--batch B] [--repeats N] [--weights NAME=FILE …]
    python benchmarks/head_speed.py --smoke

All variants are measured in one run, in turns, so that what else happens on the machine hits them alike; the median of
the turns counts. Without weights the models find nothing, and NMS and mask head have nothing to do; with weights
(of a training with the same classes) they work as in use. Memory is the peak of the GPU, where there is one; on the CPU
that of a process that does one step and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _vitdet  # noqa: F401  registers Detectron2's ViT
import torch
from _memory import peak_gib
from _record import write_result
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from tqdm import tqdm

import implantdet  # noqa: F401  registers our components
from implantdet.config import add_implantdet_config
from implantdet.taxonomy import default_taxonomy

ROOT = Path(__file__).parents[1]
SIZE = 416
VITDET_BACKBONE = [
    *("MODEL.BACKBONE.NAME", "vitdet", "MODEL.PIXEL_MEAN", "[114.5, 114.5, 114.5]"),
    *("MODEL.PIXEL_STD", "[57.6, 57.6, 57.6]"),
]
# The heads of Detectron2's own ViTDet configs (projects/ViTDet/configs/common).
VITDET_HEADS = [
    *("MODEL.RPN.CONV_DIMS", "[-1, -1]", "MODEL.ROI_BOX_HEAD.NUM_CONV", "4", "MODEL.ROI_BOX_HEAD.NUM_FC", "1"),
    *("MODEL.ROI_BOX_HEAD.NORM", "LN", "MODEL.ROI_MASK_HEAD.NORM", "LN"),
    *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", *VITDET_BACKBONE),
    *("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "False", "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", "False"),
]
FEWER = ["MODEL.RPN.POST_NMS_TOPK_TRAIN", "500", "MODEL.RPN.POST_NMS_TOPK_TEST", "300"]
# Name: options, bfloat16, channels last, compiled backbone.
VARIANTS: dict[str, tuple[list[str], bool, bool, bool]] = {
    "detectron2 ViTDet-B": (VITDET_HEADS, False, False, False),
    "detectron2 ViTDet-B, bf16": (VITDET_HEADS, True, False, False),
    "detectron2's ViTDet-B backbone, our heads": (VITDET_BACKBONE, False, False, False),
    "detectron2's ViTDet-B backbone, our heads, bf16": (VITDET_BACKBONE, True, False, False),
    "ours": ([], False, False, False),
    "ours, bf16": ([], True, False, False),
    "ours, fewer proposals": (FEWER, False, False, False),
    "ours, fewer proposals, bf16": (FEWER, True, False, False),
    "ours, fewer proposals, bf16, channels last": (FEWER, True, True, False),
    "ours, fewer proposals, bf16, channels last, compiled": (FEWER, True, True, True),
}


def build(options: list[str], device: str, smoke: bool) -> nn.Module:
    """A detector with masks for the taxonomy's categories, in the sizes of the paper."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/Base-parts.yaml"))
    cfg.merge_from_list(options)
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON, cfg.DATASETS.TRAIN = device, True, ()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(default_taxonomy().coco_categories())
    if smoke:
        cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.IMG_SIZE, cfg.MODEL.VIT.PYRAMID_CHANNELS = "test_vit", 128, 16
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    return build_model(cfg)


def images(batch: int, channels: int, size: int) -> list[dict[str, Any]]:
    """Radiographs with two implants each, of ten annotations; what is painted does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    records = []
    for _ in range(batch):
        boxes, masks = [], torch.zeros(20, size, size, dtype=torch.bool)
        for index in range(20):
            x, y = (index // 10) * size // 2 + size // 8, (index % 3) * size // 5 + size // 8
            boxes.append([x, y, x + size // 8, y + size // 5])
            masks[index, y : y + size // 5, x : x + size // 8] = True
        instances = Instances((size, size), gt_boxes=Boxes(torch.tensor(boxes).float()), gt_masks=BitMasks(masks))
        instances.gt_classes = torch.arange(20)
        image = torch.rand(channels, size, size, generator=generator) * 255
        records.append({"image": image, "instances": instances, "height": size, "width": size})
    return records


def steps(name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What is timed of a variant: one training step, one batch of inference."""
    options, bf16, channels_last, compiled = VARIANTS[name]
    model = build(options, arguments.device, arguments.smoke)
    if name in arguments.weights:
        model.load_state_dict(torch.load(arguments.weights[name], weights_only=True, map_location="cpu")["model"])
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if compiled:
        model.backbone.compile()
    size = 128 if arguments.smoke else SIZE
    records = images(arguments.batch, len(model.pixel_mean), size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    def autocast() -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(arguments.device, torch.bfloat16, enabled=bf16)

    def training() -> None:
        model.train()
        optimizer.zero_grad()
        with autocast(), EventStorage():
            loss = sum(model(records).values())
        loss.backward()
        optimizer.step()

    def inference() -> None:
        model.eval()
        with autocast(), torch.inference_mode():
            model(records)

    return {"inference": inference, "training": training}


def seconds(step: Callable[[], Any], device: str) -> float:
    """Time of one call."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_of_process(name: str, kind: str, arguments: argparse.Namespace) -> float:
    """Peak of resident memory, in GiB, of a process that does one step."""
    command = [sys.executable, __file__, "--device", "cpu", "--batch", str(arguments.batch), "--one-step", name, kind]
    command += ["--smoke"] if arguments.smoke else []
    command += ["--weights", *(f"{variant}={path}" for variant, path in arguments.weights.items())]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every variant in turns."""
    todo = {name: steps(name, arguments) for name in arguments.variants}
    times: dict[str, dict[str, list[float]]] = {name: {"inference": [], "training": []} for name in todo}
    peaks: dict[str, dict[str, float]] = {name: {} for name in todo}
    for turn in tqdm(range(arguments.repeats + 1), desc="turns"):
        for name, kinds in todo.items():
            for kind, step in kinds.items():
                if arguments.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                elapsed = seconds(step, arguments.device)
                if turn > 0:  # the first one warms up
                    times[name][kind].append(elapsed)
                if arguments.device == "cuda":
                    # Beyond what all variants hold between their steps: weights, the optimizer's state, gradients.
                    peaks[name][kind] = (torch.cuda.max_memory_allocated() - before) / 2**30
    rates = {
        name: {kind: arguments.batch / statistics.median(values) for kind, values in kinds.items()}
        for name, kinds in times.items()
    }
    first = rates[arguments.variants[0]]
    if arguments.device == "cpu":
        todo.clear()  # the processes below need the memory
        peaks = {name: {kind: peak_of_process(name, kind, arguments) for kind in first} for name in times}
    memory = "peak_memory_gib_of_activations" if arguments.device == "cuda" else "peak_memory_gib_of_the_process"
    result = {
        name: {
            "images_per_second": rates[name],
            "times_the_first": {kind: rate / first[kind] for kind, rate in rates[name].items()},
            "seconds": times[name],
            memory: peaks[name],
        }
        for name in times
    }
    return {"device": arguments.device, "batch": arguments.batch, "size": SIZE, "variants": result}


def main() -> None:
    """Measure and write ``head_speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE", help="model_final.pth of variants")
    parser.add_argument("--smoke", action="store_true", help="seconds, tiny models, no record")
    parser.add_argument("--one-step", nargs=2, metavar=("NAME", "KIND"), help="do this and print the peak of memory")
    arguments = parser.parse_args()
    arguments.weights = dict(item.split("=", 1) for item in arguments.weights)
    if arguments.one_step:
        name, kind = arguments.one_step
        steps(name, arguments)[kind]()
        print(peak_gib())
        return
    if arguments.smoke:
        arguments.batch, arguments.repeats = 1, 1
        arguments.variants = [name for name in arguments.variants if not VARIANTS[name][3]]  # compiling takes minutes
        print(measure(arguments))
    else:
        write_result("head_speed", measure(arguments))


if __name__ == "__main__":
    main()
