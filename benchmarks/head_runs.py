"""What the benchmarks of the part detector share: data, trainings that can be interrupted, metrics of detections."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from _paired import paired_difference
from _record import write_result
from _resumed import SCRIPT, commit_of, read_json, train_once
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.ops import box_convert, box_iou

from implantdet.config import add_implantdet_config
from implantdet.data.idd import load_folds, write_json
from implantdet.data.register import register_idd
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.trainer import Trainer
from implantdet.evaluation.coco_evaluator import coco_ground_truth
from implantdet.evaluation.coco_metrics import coco_metrics
from implantdet.phantom.generate import ARGUMENTS, GENERATOR
from implantdet.taxonomy import SYSTEM, THIRDS

ROOT = Path(__file__).parents[1]
CONFIG = "configs/Base-tiny.yaml"
DETECTED = "detected.json"
_DETECTING = threading.Lock()  # one at a time: registered datasets and loggers are global
HEAD = ("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True")
# For seconds on a CPU: shows that the script runs, and nothing else.
SMOKE = (
    *("MODEL.VIT.NAME", "test_vit", "MODEL.VIT.IMG_SIZE", "64", "MODEL.VIT.PYRAMID_CHANNELS", "16"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "DATALOADER.NUM_WORKERS", "0"),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.005"),  # such a model is sure of nothing
)


def parser_of(doc: str | None, name: str, images: int) -> argparse.ArgumentParser:
    """A parser with what these benchmarks have in common; ``name`` is that of their folder under ``output/``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output") / name, help="data and runs")
    parser.add_argument("--images", type=int, default=images, help="size of the phantom")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … of all trainings")
    return parser


def parser_of_run(doc: str | None) -> argparse.ArgumentParser:
    """A parser of what evaluations of a trained detector have in common."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="OUTPUT_DIR of the detector")
    parser.add_argument("data", type=Path, nargs="?", help="dataset folder")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    return parser


def report(
    name: str, arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], dict[str, Any]], **smoke: Any
) -> None:
    """Write what was measured to ``results/<name>.json``; with ``--smoke``, print it for small values of arguments."""
    if not arguments.smoke:
        write_result(name, measure(arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        small = {"work": Path(folder), "images": 40, "seeds": [0, 1], "options": list(SMOKE), **smoke}
        print(measure(argparse.Namespace(**vars(arguments) | small)))


def num_train(data: Path) -> int:
    """Number of training images of fold 0 of a dataset folder."""
    return sum(len(fold) for fold in load_folds(data)["folds"][1:])


def lengths(epochs: float, num_checkpoints: int = 2) -> tuple[object, ...]:
    """Options of the length of a training, a twelfth of it warm-up."""
    return (
        *("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", epochs / 12),
        *("SOLVER.EVAL_EPOCHS", epochs / num_checkpoints),
    )


def make_phantom(folder: Path, images: int, seed: int = 0, preset: str = "idd") -> Path:
    """A phantom dataset, rendered unless it is there."""
    if not folder.exists():
        command = ["phantom", "--out", str(folder), "--images", str(images), "--preset", preset, "--seed", str(seed)]
        subprocess.run([sys.executable, "-m", "implantdet.cli", *command], cwd=ROOT, check=True)
    made, wanted = folder / ARGUMENTS, {"generator": GENERATOR, "preset": preset, "images": images, "seed": seed}
    found = json.loads(made.read_text(encoding="utf-8")) if made.exists() else {}
    if not wanted.items() <= found.items():
        raise SystemExit(f"{folder}: a phantom of {found}, expected {wanted}; choose another --work, or remove it")
    return folder


def dataset_name(folder: Path, part: str) -> str:
    """Name that ``train_net.py`` registers a part (``train_fold0``, ``test``, …) of a dataset folder under."""
    return f"{folder.name}_{part}"


def train(run: Path, data: Path, options: Iterable[object], config: str = CONFIG, script: str = SCRIPT) -> Path:
    """Train on fold 0, unless this was done; what was interrupted goes on where its last checkpoint is.

    Nothing is evaluated: ``detect`` does that, without the second stage.

    Args:
        run: OUTPUT_DIR.
        data: dataset folder.
        options: KEY, VALUE, … after the config file.
        config: config file, from the repository's root.
        script: as of ``train_once``.

    Returns:
        ``run``, with ``model_final.pth`` and ``config.yaml``.
    """
    dataset = (
        *("DATASETS.ROOT", data.resolve(), "DATASETS.NAME", data.name, "MODEL.MASK_ON", "False"),
        *("DATASETS.TRAIN", f"('{dataset_name(data, 'train_fold0')}',)", "DATASETS.TEST", "()"),
    )
    return train_once(run, config, (*dataset, *options), "--resume", script=script)


def detect(
    run: Path, data: Path, part: str, options: Sequence[object] = (), name: str | None = None
) -> list[dict[str, Any]]:
    """What a trained model finds in a part of a dataset folder, in COCO's results format.

    Args:
        run: OUTPUT_DIR of the training.
        data: dataset folder.
        part: ``val_fold0`` or ``test``.
        options: KEY, VALUE, … on top of the training's config.
        name: folder in ``run`` that keeps what was found, for another call with the same weights and options; None:
            that of the part.
    """
    out, weights = run / (name or part), run / "model_final.pth"
    made_with = {"options": list(map(str, options)), "weights_of": weights.stat().st_mtime_ns}
    with _DETECTING:
        if made_with.items() <= read_json(out / DETECTED).items():
            return detections(out)
        start = time.perf_counter()
        cfg = get_cfg()
        add_implantdet_config(cfg)
        cfg.merge_from_file(str(run / "config.yaml"))
        cfg.merge_from_list(list(options))
        cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (dataset_name(data, part),), str(out)
        register_idd(data, data.name)
        model = Trainer.build_model(cfg)
        Checkpointer(model).load(str(weights))
        Trainer.test(cfg, Trainer.build_detector(cfg, model))
        write_json(out / DETECTED, made_with | {"seconds": time.perf_counter() - start})
    return detections(out)


def detecting_seconds(out: Path) -> float:
    """How long ``detect`` took, with loading the model and with the metrics, for what a folder keeps."""
    return read_json(out / DETECTED)["seconds"]


def in_parallel(jobs: int, tasks: Sequence[Callable[[], Path]]) -> list[Path]:
    """Run trainings side by side, each with its share of the cores, unless OMP_NUM_THREADS says how many threads."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda task: task(), tasks))


def ground_truth(data: Path, part: str) -> dict[str, Any]:
    """COCO content of a part of a dataset folder; categories carry their supercategory and training annotations."""
    register_idd(data, data.name)
    content = coco_ground_truth(dataset_name(data, part))
    metadata = MetadataCatalog.get(dataset_name(data, part))
    records = DatasetCatalog.get(dataset_name(data, "train_fold0"))
    counts = Counter(a["category_id"] for record in records for a in record["annotations"])
    for index, category in enumerate(content["categories"]):
        category |= {"supercategory": metadata.supercategories[index], "num_train": counts[index]}
    return content


def detections(run: Path) -> list[dict[str, Any]]:
    """What a trained model found, in COCO's results format."""
    return json.loads((run / "coco_instances_results.json").read_text(encoding="utf-8"))


def metrics(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, float]:
    """AP and AP50 of parts, of the rarest third of the part categories, and of whole implants, in percent."""
    per_class = coco_metrics(truth, found)["per_class"]
    parts = sorted(
        (category for category in truth["categories"] if category["supercategory"] in THIRDS and category["num_train"]),
        key=lambda category: category["num_train"],
    )
    systems = [c for c in truth["categories"] if c["supercategory"] == SYSTEM and c["num_train"]]
    groups = {"part": parts, "rare_part": parts[: len(parts) // 3], "implant": systems}
    return {
        f"{name}_{metric}": float(np.nanmean([per_class[category["name"]][metric] for category in group]))
        for name, group in groups.items()
        for metric in ("AP", "AP50")
    }


def paired_differences(
    after: dict[int, dict[str, float]], before: dict[int, dict[str, float]]
) -> dict[str, dict[str, Any]]:
    """``paired_difference`` over the seeds, for each metric."""
    return {
        key: paired_difference(*({seed: metrics[key] for seed, metrics in side.items()} for side in (after, before)))
        for key in next(iter(after.values()))
    }


def axis_accuracy(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How well each axis is answered on thirds of implants that were found, by axis.

    A third was found if any detection of its third overlaps its box at IoU 0.5. Its answer is the best detection of the
    axis there. ``answered``: percent of found thirds with an answer; ``accuracy``: percent with the right one, so that
    no answer is wrong; ``balanced``: the mean of this percentage over the values; ``commonest``: percent that would be
    right if the answer were always the commonest value.
    """
    names = {category["id"]: category["name"] for category in truth["categories"]}
    is_part = {category["id"]: category["supercategory"] in THIRDS for category in truth["categories"]}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for record in found:
        if is_part[record["category_id"]]:
            by_image.setdefault(record["image_id"], []).append(record)
    tally: dict[str, dict[str, Counter[str]]] = {}  # axis → what → value → count
    for annotation in truth["annotations"]:
        if annotation["iscrowd"] or not is_part[annotation["category_id"]]:
            continue
        name = names[annotation["category_id"]]
        (axis, _, value), third = name.rpartition("."), name.partition(".")[0]
        here = [d for d in _overlapping(annotation, by_image) if names[d["category_id"]].startswith(f"{third}.")]
        answers = [d for d in here if names[d["category_id"]].startswith(f"{axis}.")]
        best = max(answers, key=lambda d: d["score"], default=None)
        counts = tally.setdefault(axis, {"found": Counter(), "answered": Counter(), "right": Counter()})
        counts["found"][value] += bool(here)
        counts["answered"][value] += best is not None
        counts["right"][value] += best is not None and best["category_id"] == annotation["category_id"]
    return {axis: _shares(**counts) for axis, counts in sorted(tally.items())}


def _shares(found: Counter[str], answered: Counter[str], right: Counter[str]) -> dict[str, float]:
    total = max(found.total(), 1)
    recalls = [100 * right[value] / count for value, count in found.items() if count]
    return {
        "found": found.total(),
        "answered": 100 * answered.total() / total,
        "accuracy": 100 * right.total() / total,
        "balanced": mean(recalls) if recalls else 0.0,
        "commonest": 100 * max(found.values(), default=0) / total,
    }


def compared(
    trainings: dict[tuple[str, int], Callable[[], Path]],
    data: Path,
    part: str,
    base_of: Mapping[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """What is found in a part of a dataset folder, by setting and seed, with the difference to another setting.

    Args:
        trainings: by setting and seed, each with a result as of ``train``.
        data: dataset folder.
        part: as of ``detect``.
        base_of: by setting, the one that its difference is to; None: the setting before.
    """
    truth = ground_truth(data, part)
    table: dict[str, dict[str, Any]] = {}
    for (name, seed), training in trainings.items():
        run = training()
        found = detect(run, data, part)
        row = table.setdefault(name, {"by_seed": {}, "axes": {}, "commits": {}})
        row["commits"][seed] = commit_of(run)
        row["by_seed"][seed] = metrics(truth, found)
        row["axes"][seed] = axis_accuracy(truth, found)
    if base_of is None:
        names = list(table)
        base_of = dict(zip(names[1:], names, strict=False))
    for name, base in base_of.items():
        after, before = table[name], table[base]
        after["base"] = base
        after["difference"] = paired_differences(after["by_seed"], before["by_seed"])
        after["axes_difference"] = paired_differences(*(_accuracies(row["axes"]) for row in (after, before)))
    for row in table.values():
        row["axes"] = _mean_accuracy(list(row["axes"].values()))
    return table


def _accuracies(by_seed: dict[int, dict[str, dict[str, float]]]) -> dict[int, dict[str, float]]:
    """By seed, the accuracy of every axis."""
    return {seed: {axis: figures["accuracy"] for axis, figures in axes.items()} for seed, axes in by_seed.items()}


def _mean_accuracy(by_seed: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean over seeds of ``axis_accuracy``."""
    return {
        axis: {key: float(np.mean([seed[axis][key] for seed in by_seed])) for key in by_seed[0][axis]}
        for axis in by_seed[0]
    }


def _overlapping(annotation: dict[str, Any], by_image: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    candidates = by_image.get(annotation["image_id"], [])
    if not candidates:
        return []
    boxes = box_convert(torch.tensor([annotation["bbox"], *(d["bbox"] for d in candidates)]), "xywh", "xyxy")
    overlap = box_iou(boxes[:1], boxes[1:])[0] >= 0.5
    return [candidate for candidate, near in zip(candidates, overlap.tolist(), strict=True) if near]
