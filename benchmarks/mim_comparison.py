"""What a pre-training is worth: random, MAE, MDE to the paper's letter and our MDE, fine-tuned alike.

    python benchmarks/mim_comparison.py DIR [DIR …] --out OUT [--seeds 0 1 2] [--folds 0 1 2] [--labels 1.0 0.1]
    python benchmarks/mim_comparison.py DIR --out OUT --ratios 0.25 0.4 0.65 0.75 --epochs 50 100   (paper, table 6)
    python benchmarks/mim_comparison.py DIR --out OUT --inits … --labels   (variants of MDE's default: probes alone)

DIR: dataset folders with folds (datasets/README.md). For every dataset, fold and seed: pre-train on the training images
of the fold, probe the features on its validation images, fine-tune on the labels (all, or a share of the patients), and
validate. What is finished in OUT is skipped, and what was interrupted goes on from its last checkpoint: so
--minutes 60, again and again, gets there too. What is finished is written to ``results/<--name>.json``: every run,
means, and paired 95 % intervals of the differences (t, over the pairs of fold and seed). Runs that are in that file
already, of the same configs and lengths, stay and are not trained again: so one machine can add seeds to what another
has measured, at the commit that the file names for each of them. A file with runs of other configs is refused: they
compare with none of the new ones. Random weights are taken whatever the length of the pre-training. A training that
fails, as by a collapse, is listed, and the others go on.

--size tiny (ViT-Ti) is for CPUs: it pre-trains all inits on crops of 128 px (to the letter of the paper mde_paper would
see whole images, here at less than half the scale of the detector), probes at 224 px, and fine-tunes by
configs/opg_vit_tiny.yaml or, for parts, configs/idd_tiny.yaml; base (ViT-B, 416 px) takes the configs as they are.
--smoke proves that the script runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _fingerprint import fingerprint
from _paired import paired_difference
from _record import RESULTS, write_result
from _resumed import FailedTrainingError, OutOfTimeError, origin, read_json, train_once

from implantdet.data.idd import load_folds, load_idd, write_json
from implantdet.phantom.generate import ARGUMENTS

# Config of the pre-training, and what differs from it.
INITS: dict[str, tuple[str, tuple[object, ...]]] = {
    "random": ("pretrain_mae", ()),
    "mae": ("pretrain_mae", ()),
    "mde_paper": ("pretrain_mde_paper", ()),
    "mde": ("pretrain_mde", ()),
    "mae_light_decoder": ("pretrain_mae", ("MODEL.MIM.DECODER_DEPTH", 2)),
    "mde_upper_layers": ("pretrain_mde", ("MODEL.MIM.TARGET_LAYERS", [6, 7, 8, 9, 10, 11])),
    "mde_middle_layers": ("pretrain_mde", ("MODEL.MIM.TARGET_LAYERS", [3, 4, 5])),
    "mde_no_pixels": ("pretrain_mde", ("MODEL.MIM.PIXEL_WEIGHT", 0.0)),
    "mde_patch_embed": ("pretrain_mde", ("MODEL.MIM.TARGET", "patch_embed")),
    "mde_half_masked": ("pretrain_mde", ("MODEL.MIM.MASK_RATIO", 0.5)),
}
PAIRS = (("mde", "mae"), ("mde", "random"), ("mde", "mde_paper"), ("mde_paper", "mae"), ("mae", "random"))
_SMALL_DECODER = ("MODEL.MIM.DECODER_DIM", 128, "MODEL.MIM.DECODER_HEADS", 4)  # in proportion to ViT-Ti
_TEST_VIT = ("MODEL.VIT.NAME", "test_vit", "MODEL.VIT.IMG_SIZE", 64, "INPUT.MIN_SIZE_TEST", 64)
PRETRAIN = {
    "base": (),
    "tiny": (
        *("MODEL.VIT.NAME", "vit_tiny_patch16_224", "MODEL.VIT.IMG_SIZE", 128, "INPUT.MIN_SIZE_TEST", 224),
        *("INPUT.MIN_CROP_AREA", 0.2, "MODEL.MIM.EMA_DECAY", 0.99, "DATALOADER.NUM_WORKERS", 1),
        *("SOLVER.IMS_PER_BATCH", 16, "SOLVER.BASE_LR", 5e-4, "SOLVER.AMP.ENABLED", False, *_SMALL_DECODER),
    ),
    "smoke": (
        *_TEST_VIT,
        *("SOLVER.IMS_PER_BATCH", 4, "SOLVER.AMP.ENABLED", False, "DATALOADER.NUM_WORKERS", 0, *_SMALL_DECODER),
    ),
}
# In float32, because not every CPU has instructions for bfloat16: so machines can share a comparison.
_TINY = ("DATALOADER.NUM_WORKERS", 1, "SOLVER.AMP.ENABLED", False)
# All sides are fine-tuned alike: the lower blocks of random weights, too, learn more slowly, as in idd_tiny.
_DECAY = ("SOLVER.LAYER_DECAY", 0.75)
_PARTS = (
    *("MODEL.ROI_HEADS.NAME", "ImplantROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    *("TEST.DETECTIONS_PER_IMAGE", 300),
)
# For datasets of findings, and of design parts: several of them on one box.
FINETUNE: dict[str, dict[bool, tuple[str, tuple[object, ...]]]] = {
    "base": {False: ("configs/Base-ViT-SFP.yaml", ()), True: ("configs/idd_random.yaml", ())},
    "tiny": {False: ("configs/opg_vit_tiny.yaml", (*_TINY, *_DECAY)), True: ("configs/idd_tiny.yaml", _TINY)},
    "smoke": {
        kind: ("configs/opg_smoke.yaml", ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.005, *options))
        for kind, options in ((False, ()), (True, _PARTS))
    },
}


class Variant(NamedTuple):
    """One way to start: its name, the pre-training's config (without folder and suffix) and options for it."""

    name: str
    config: str
    options: tuple[object, ...]


RunKey = tuple[str, str, int, int, float]  # dataset, init, fold, seed, share of labels (0: probes)


def dataset_options(data: Path, fold: int) -> tuple[object, ...]:
    """Train on a fold's training images, and test on its validation images."""
    name = data.name
    return (
        *("DATASETS.ROOT", data, "DATASETS.NAME", name, "DATASETS.TRAIN", f"('{name}_train_fold{fold}',)"),
        *("DATASETS.TEST", f"('{name}_val_fold{fold}',)"),
    )


def reduced(data: Path, out: Path, fold: int, share: float, seed: int, val_images: int | None) -> Path:
    """The dataset folder with the training images of a share of a fold's patients (or sources), and fewer to validate.

    Nothing is left to test: the report on whole implants after a training is not what this comparison reads.
    """
    if share == 1 and val_images is None:
        return data
    folder = out / f"{data.name}_fold{fold}_seed{seed}_{share:g}_{val_images}"
    if (folder / "folds.json").exists():
        if (folder / "images").resolve() != (data / "images").resolve() or phantom_of(folder) != phantom_of(data):
            raise FailedTrainingError(f"{folder}: made from another dataset than {data}; choose another --out")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "images").exists():
        (folder / "images").symlink_to((data / "images").resolve(), target_is_directory=True)
    content, folds = load_idd(data), load_folds(data)
    group_of = {i["id"]: str(i.get("patient_id") or i.get("source_id") or i["id"]) for i in content["images"]}
    groups = sorted({group_of[i] for k, ids in enumerate(folds["folds"]) if k != fold for i in ids})
    number = max(1, round(share * len(groups)))
    kept = set(np.random.default_rng(seed).choice(groups, number, replace=False))
    validation = sorted(folds["folds"][fold])
    if val_images is not None:  # the same ones for every seed
        validation = sorted(np.random.default_rng(0).permutation(validation)[:val_images].tolist())
    split = [[i for i in ids if group_of[i] in kept] for ids in folds["folds"]]
    split[fold] = validation
    ids = set(itertools.chain.from_iterable(split))
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    content["annotations"] = [label for label in content["annotations"] if label["image_id"] in ids]
    if (data / ARGUMENTS).exists():
        shutil.copy(data / ARGUMENTS, folder)
    write_json(folder / "annotations.json", content)
    write_json(folder / "folds.json", folds | {"folds": split, "test": []})
    return folder


def key_of(record: dict[str, Any]) -> RunKey:
    """What tells a run from the others."""
    return record["dataset"], record["init"], record["fold"], record["seed"], record["labels"]


def configs_of(args: argparse.Namespace, data: Path, variant: Variant) -> list[str]:
    """What tells the settings behind a variant's runs from others: of its pre-training, of its fine-tunings."""
    finetuning = fingerprint(*FINETUNE[args.size][has_parts(data)])
    return [
        pretraining_of(data, f"configs/{variant.config}.yaml", (*PRETRAIN[args.size], *variant.options)),
        f"{finetuning}, {args.finetune_epochs:g} epochs, {args.val_images} images{phantom_of(data)}",
    ]


def pretraining_of(data: Path, config: str, options: tuple[object, ...]) -> str:
    """What tells a pre-training from others, beside the place of the data and the seed."""
    return f"{fingerprint(config, options)}{phantom_of(data)}"


def phantom_of(data: Path) -> str:
    """Which generator drew a dataset folder; nothing if it is no phantom."""
    return f", phantom {read_json(data / ARGUMENTS)['generator']}" if (data / ARGUMENTS).exists() else ""


def recorded(args: argparse.Namespace) -> dict[RunKey, dict[str, Any]]:
    """The runs of the result file.

    Raises:
        SystemExit: some compare with none of those that are asked for, as their configs, lengths or phantom differ.
    """
    path = RESULTS / f"{args.name}.json"
    found = read_json(path).get("runs", [])
    # Inits that are not asked for now are compared with those that are, and need the same lengths and detector.
    every = [*variants(args), *variants(argparse.Namespace(**vars(args) | {"inits": list(INITS), "ratios": []}))]
    expected: dict[str, dict[str, list[str]]] = {}
    for data, variant in itertools.product(args.data, every):
        expected.setdefault(data.resolve().name, {})[variant.name] = configs_of(args, data, variant)

    def same(record: dict[str, Any]) -> bool:
        of_dataset, configs = expected.get(record["dataset"]), record.get("configs", [])
        if of_dataset is None:  # compared with none of these anyway
            return True
        if record["init"] in of_dataset:
            return configs == of_dataset[record["init"]][: 2 if record["labels"] else 1]
        # Another ratio: its length is in its name.
        return configs[1:] in ([], next(iter(of_dataset.values()))[1:])

    others = [record for record in found if not same(record)]
    if others:
        runs = ", ".join(f"{r['init']} seed {r['seed']} labels {r['labels']:g}" for r in others[:3])
        raise SystemExit(
            f"{path}: holds {len(others)} runs of other configs, lengths or data than are asked for, such as {runs}; "
            "choose another --name"
        )
    return {key_of(record): record for record in found}


def run_one(
    deadline: float, args: argparse.Namespace, data: Path, variant: Variant, fold: int, seed: int
) -> Iterator[dict]:
    """Pre-train, then fine-tune with every share of the labels; yields a record for each of these."""
    out = args.out.resolve() / data.name / f"fold{fold}_seed{seed}" / variant.name
    options = (*PRETRAIN[args.size], "SEED", seed, *dataset_options(data, fold), *variant.options)
    configs = configs_of(args, data, variant)
    config = f"configs/{variant.config}.yaml"
    pretrained = train_once(out / "pretrain", config, options, "--resume", configs=configs[:1], deadline=deadline)
    record = {"dataset": data.name, "init": variant.name, "fold": fold, "seed": seed}
    written = {kind: read_json(pretrained / f"{kind}.json").get(kind, {}) for kind in ("features", "reconstruction")}
    yield (
        record
        | {"labels": 0.0}
        | origin(pretrained)
        | {f"{kind}_{key}": value for kind, found in written.items() for key, value in found.items()}
    )
    config, finetune = FINETUNE[args.size][has_parts(data)]
    weights = "" if variant.name == "random" else pretrained / "model_final.pth"
    for share in args.labels:
        folder = reduced(data, args.out.resolve() / "reduced", fold, share, seed, args.val_images)
        epochs = args.finetune_epochs / share
        options = (
            *("SEED", seed, *dataset_options(folder, fold), "MODEL.MASK_ON", False, "MODEL.WEIGHTS", weights),
            *(*finetune, "SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", 0.05 * epochs),
            *("SOLVER.EVAL_EPOCHS", epochs),
        )
        run = train_once(out / f"labels_{share:g}", config, options, "--resume", configs=configs, deadline=deadline)
        yield (
            record
            | {"labels": share}
            | origin(run)
            | detection_metrics(read_json(run / "results.json")["bbox"])
            | losses(run)
        )


def has_parts(data: Path) -> bool:
    """Whether a dataset folder has categories of design parts; they are named <third>.<axis>.<value>."""
    return any(category["name"].count(".") == 2 for category in load_idd(data)["categories"])


def detection_metrics(bbox: dict[str, Any]) -> dict[str, float]:
    """AP, AP50 and AP75, and AP and AP50 of design parts and of whole implants where there are both."""
    metrics = {key: bbox[key] for key in ("AP", "AP50", "AP75")}
    # Parts are named <third>.<axis>.<value>.
    parts = {True: [], False: []}
    for name, of_class in bbox["per_class"].items():
        parts[name.count(".") == 2].append(of_class)
    if parts[True] and parts[False]:
        for kind, classes in (("part", parts[True]), ("implant", parts[False])):
            for key in ("AP", "AP50"):
                known = [of_class[key] for of_class in classes if of_class[key] is not None]
                metrics |= {f"{kind}_{key}": statistics.mean(known)} if known else {}
    return {key: value for key, value in metrics.items() if value is not None}


def losses(run: Path) -> dict[str, float]:
    """Of a finished training: the training loss over its last tenth, and the loss of its last validation."""
    rows = [json.loads(line) for line in (run / "metrics.json").read_text(encoding="utf-8").splitlines()]
    of_training, of_validation = ([row[key] for row in rows if key in row] for key in ("total_loss", "validation_loss"))
    return {"train_loss": statistics.mean(of_training[-max(1, len(of_training) // 10) :])} | (
        {"validation_loss": of_validation[-1]} if of_validation else {}
    )


def summarise(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every dataset, share of labels and metric: means, deviations, and paired differences of the inits."""
    by_key: dict[tuple[str, float, str], dict[str, dict[tuple[int, int], float]]] = {}
    for record in records:
        for metric in record.keys() - {"dataset", "init", "fold", "seed", "labels", "commit", "configs"}:
            inits = by_key.setdefault((record["dataset"], record["labels"], metric), {})
            inits.setdefault(record["init"], {})[record["fold"], record["seed"]] = record[metric]
    summary = []
    for (dataset, labels, metric), inits in sorted(by_key.items()):
        means = {
            name: {"mean": statistics.mean(values.values()), "runs": len(values)}
            | ({"sd": statistics.stdev(values.values())} if len(values) > 1 else {})
            for name, values in inits.items()
        }
        pairs = [pair for pair in PAIRS if pair[0] in inits and pair[1] in inits]
        differences = {f"{one} - {other}": paired_difference(inits[one], inits[other]) for one, other in pairs}
        summary.append(
            {"dataset": dataset, "labels": labels, "metric": metric, "inits": means, "differences": differences}
        )
    return summary


def all_alike(keys: Iterable[RunKey]) -> bool:
    """Whether every dataset has the same runs in every fold with every seed."""
    of_pair: dict[str, dict[tuple[int, int], set[tuple[str, float]]]] = {}
    for dataset, init, fold, seed, labels in keys:
        of_pair.setdefault(dataset, {}).setdefault((fold, seed), set()).add((init, labels))
    return all(len(set(map(frozenset, pairs.values()))) == 1 for pairs in of_pair.values())


def variants(args: argparse.Namespace) -> list[Variant]:
    """The four inits at the first length, or MDE at every mask ratio and length."""
    lengths = {
        epochs: ("SOLVER.MAX_EPOCHS", epochs, "SOLVER.WARMUP_EPOCHS", 0.1 * epochs, "SOLVER.EVAL_EPOCHS", epochs)
        for epochs in args.epochs
    }
    if args.ratios:
        grid = itertools.product(args.ratios, args.epochs)
        return [
            Variant(f"mde_{100 * r:g}_{e:g}", INITS["mde"][0], (*lengths[e], "MODEL.MIM.MASK_RATIO", r))
            for r, e in grid
        ]
    chosen = [Variant(name, INITS[name][0], (*lengths[args.epochs[0]], *INITS[name][1])) for name in args.inits]
    # Features of an encoder that has not learned; it is fine-tuned from timm's own initialisation.
    still = ("SOLVER.BASE_LR", 1e-12, "SOLVER.MAX_EPOCHS", 0.001, "SOLVER.WARMUP_EPOCHS", 0.0)
    return [variant if variant.name != "random" else variant._replace(options=still) for variant in chosen]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="dataset folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=["random", "mae", "mde_paper", "mde"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, nargs="+", default=[0], help="each of 0 to 3")
    parser.add_argument(
        "--labels", type=float, nargs="*", default=[1.0], help="shares of the labelled patients, in (0, 1]; none: probe"
    )
    parser.add_argument(
        "--epochs", type=float, nargs="+", default=[100.0], help="of pre-training; several with --ratios"
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[], help="mask ratios: MDE alone, at each of them")
    parser.add_argument(
        "--finetune-epochs", type=float, default=28.0, help="with all labels; iterations are kept with fewer"
    )
    parser.add_argument(
        "--val-images", type=int, help="of the validation fold, to validate what is fine-tuned; the others are left out"
    )
    parser.add_argument("--size", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; the next call goes on")
    parser.add_argument("--name", default="mim_comparison", help="of the result file")
    parser.add_argument("--smoke", action="store_true", help="seconds per run: it runs, and learns nothing")
    args = parser.parse_args()
    if args.smoke:
        args.size, args.epochs, args.finetune_epochs = "smoke", [1.0], 1.0
        args.name += "_smoke"
    return args


def main() -> None:
    """Run what there is time for, and write what is finished."""
    args = parse()
    deadline = time.monotonic() + 60 * args.minutes
    known = {} if args.smoke else recorded(args)
    records: dict[RunKey, dict[str, Any]] = dict(known)
    failed: list[dict[str, Any]] = []
    asked: set[RunKey] = set()
    # Seeds and folds outermost: an unfinished comparison has all inits of the pairs that are done.
    for seed, fold, data, variant in itertools.product(args.seeds, args.folds, args.data, variants(args)):
        keys = [(data.resolve().name, variant.name, fold, seed, share) for share in (0.0, *args.labels)]
        asked |= set(keys)
        if known.keys() >= set(keys):
            continue
        with suppress(OutOfTimeError):  # later ones may be finished already
            try:
                for record in run_one(deadline, args, data.resolve(), variant, fold, seed):
                    records[key_of(record)] = record
            except FailedTrainingError as error:
                which = {"dataset": data.resolve().name, "init": variant.name, "fold": fold, "seed": seed}
                failed.append(which | {"error": str(error)})
    settings = {key: [str(x) for x in value] if key == "data" else value for key, value in vars(args).items()}
    settings |= {"out": str(args.out), "minutes": None if math.isinf(args.minutes) else args.minutes}
    settings |= {"seeds": sorted({seed for *_, seed, _ in records}), "folds": sorted({key[2] for key in records})}
    is_complete = asked <= records.keys() and all_alike(records)
    found = list(records.values())
    payload = {"settings": settings, "complete": is_complete, "failed": failed, "summary": summarise(found)}
    write_result(args.name, payload | {"runs": found})
    print("complete" if is_complete else "not complete; the same command goes on")


if __name__ == "__main__":
    main()
