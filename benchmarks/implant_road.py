"""The full road, from radiographs without labels to named implants: the paper's tables 3, 4 and 5, on the phantom.

    python benchmarks/implant_road.py [--work DIR] [--images N] [--epochs E] [--inits …] [--seeds …] [--kinds …]
                                      [--finished]
    python benchmarks/implant_road.py --smoke

For every init and seed: pre-train on the training images of fold 0, train the detector of parts and systems (table 4)
and that of systems alone (table 3), calibrate on the validation fold, and evaluate on the test patients, before and
after the second stage (table 5). Then implants of makers that no training saw are shown to the first detector of parts:
how well does `fit` tell them from known ones, if the list of product lines does not have them either?

--size tiny (configs/idd_tiny.yaml) is for CPUs and pre-trains as mim_comparison.py does, whose folders may therefore
lie in --work as pretrain_<init>_seed<seed>; base (ViT-B, 416 px) takes the configs as they are. What is finished in
--work is not trained again, but its detections are assembled anew; what was interrupted goes on. Only a training whose
results are under results/ already, of the same settings, is not looked at: so one machine can add seeds, or rows, to
what another has measured. To assemble it anew, too, remove its file there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import head_runs as runs
import numpy as np
import yaml
from _detections import instances_of
from _fingerprint import fingerprint
from _record import RESULTS, write_result
from _resumed import DONE, commit_of, train_once
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from mim_comparison import PRETRAIN, pretraining_of
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from implantdet.assembly import ranking, ranking_calibration
from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.known import known_implants, scale_of
from implantdet.data.groups import patient_groups
from implantdet.data.register import register_idd
from implantdet.evaluation.coco_evaluator import COCOEvaluator
from implantdet.evaluation.implant_evaluator import ImplantEvaluator
from implantdet.evaluation.implant_matching import ImageOutcome
from implantdet.evaluation.implant_metrics import part_metrics
from implantdet.evaluation.system_metrics import Matched, ranking_metrics
from implantdet.phantom.generate import GENERATOR
from implantdet.phantom.lines import ProductLine, default_lines

INITS = {"random": None, "mae": "pretrain_mae", "mde": "pretrain_mde"}
KINDS = ("parts", "systems")
UNSEEN_SYSTEM = "other"
ASSEMBLED = "assembled"  # folder in a run
Options = tuple[object, ...]
DETECT: dict[str, tuple[str, Options]] = {
    "base": ("configs/idd_{init}.yaml", ()),
    "tiny": ("configs/idd_tiny.yaml", ()),
    "smoke": (runs.CONFIG, (*runs.SMOKE, *runs.HEAD)),
}


def of_dataset(data: Path, test: str, train: str = "train_fold0", suffix: str = "") -> Options:
    """Options that choose a dataset folder and its parts."""
    names = [runs.dataset_name(data, part) + suffix for part in (train, test)]
    return (
        *("DATASETS.ROOT", data.resolve(), "DATASETS.NAME", data.name),
        *("DATASETS.TRAIN", f"('{names[0]}',)", "DATASETS.TEST", f"('{names[1]}',)"),
    )


def lengths(epochs: float, warmup: float, num_evaluations: float) -> Options:
    """Options of the length of a training."""
    return (
        *("SOLVER.MAX_EPOCHS", float(epochs), "SOLVER.WARMUP_EPOCHS", float(warmup)),
        *("SOLVER.EVAL_EPOCHS", float(epochs / num_evaluations)),
    )


def pretrained(args: argparse.Namespace, data: Path, init: str, seed: int) -> Options:
    """The option that lets a detector start from its init."""
    if INITS[init] is None:
        return ()
    epochs = args.pretrain_epochs
    options = (*PRETRAIN[args.size], *of_dataset(data, "val_fold0"), *lengths(epochs, epochs / 10, 1), "SEED", seed)
    config, run = f"configs/{INITS[init]}.yaml", args.work / f"pretrain_{init}_seed{seed}"
    # As mim_comparison.py has it.
    configs = [pretraining_of(data, config, (*PRETRAIN[args.size], *lengths(epochs, epochs / 10, 1)))]
    train_once(run, config, options, "--resume", configs=configs)
    return ("MODEL.WEIGHTS", run / "model_final.pth")


def detector(args: argparse.Namespace, data: Path, kind: str, init: str, seed: int) -> tuple[Path, dict[str, Any]]:
    """Train and test a detector: its OUTPUT_DIR, and the results on the test patients."""
    config, options = DETECT[args.size]
    config = config.format(init=init)
    weights = pretrained(args, data, init, seed)
    suffix = "_systems" if kind == "systems" else ""
    of_kind = (*of_dataset(data, "val_fold0", suffix=suffix), *options, "MODEL.MASK_ON", False)
    length = lengths(args.epochs, args.epochs / 12, 1)
    run = args.work / f"{kind}_{init}_seed{seed}"
    train_once(run, config, (*of_kind, *length, *weights, *args.options, "SEED", seed), "--resume")
    folder = run / f"{data.name}_test"  # the training of parts ends there
    if kind == "systems":
        options = (*of_kind, *of_dataset(data, "test", suffix=suffix), "MODEL.WEIGHTS", run / "model_final.pth")
        train_once(folder, config, (*options, *args.options), "--eval-only")
        return run, read(folder / "results.json")
    return run, assembled_anew(data, run)


def is_finished(args: argparse.Namespace, data: Path, kind: str, init: str, seed: int) -> bool:
    """Whether a detector was trained and tested."""
    run = args.work / f"{kind}_{init}_seed{seed}"
    return (run / DONE).exists() and (kind == "parts" or (run / f"{data.name}_test" / DONE).exists())


def assembled_anew(data: Path, run: Path) -> dict[str, Any]:
    """Results on the test patients with the assembly as it is now: detections stay, and the second stage is cheap.

    Images per second stay, too. All files of an evaluation are written to the folder ``ASSEMBLED`` of the run.
    """
    folder = run / f"{data.name}_test"
    assembler = fitted(data, default_lines()).calibrate(*found_in(runs.dataset_name(data, "val_fold0"), run))
    name = runs.dataset_name(data, "test")
    evaluator = ImplantEvaluator(COCOEvaluator(name, run / ASSEMBLED), assembler)
    for record, instances in zip(*found_in(name, folder), strict=True):
        evaluator.process([record], [{"instances": instances}])
    evaluator.evaluate()
    results = read(run / ASSEMBLED / "results.json")
    for stage in ("stage1", "stage2"):
        results["implants"][stage]["fps"] = read(folder / "results.json")["implants"][stage]["fps"]
    return results


def read(path: Path) -> dict[str, Any]:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def headline(figures: dict[str, Any]) -> dict[str, Any]:
    """COCO's figures without those of every class."""
    return {key: figures[key] for key in ("AP", "AP50", "AP75", "AR100", "AP_by_iou")}


def tables(kind: str, results: dict[str, Any]) -> dict[str, Any]:
    """What the tables tell of one detector."""
    if kind == "systems":
        return {"implants_by_system": headline(results["bbox"])}
    implants = results["implants"]
    told = {
        key: implants[key] for key in ("grouping", "inferred", "systems", "lines", "system_confusion", "detections")
    }
    told |= {"plain_sets": results["plain_sets"]} if "plain_sets" in results else {}
    told["axes"] = {axis: figures["balanced_accuracy"] for axis, figures in implants["axes"].items()}
    for stage in ("stage1", "stage2"):
        told[stage] = {key: headline(implants[stage][key]) for key in ("by_system", "any_system")}
        told[stage]["fps"] = implants[stage]["fps"]
    per_class = results["bbox"]["per_class"]
    # Results of before they told it themselves are read here, too. Parts are named <third>.<axis>.<value>.
    return {"parts": part_metrics(per_class, [name for name in per_class if name.count(".") == 2]), **told}


def matched_of(
    assembler: PartAssembler, records: Sequence[dict[str, Any]], found: Sequence[Instances]
) -> tuple[Matched, list[int]]:
    """Every implant that is there and was found, and the number of its patient."""
    matched, patients = [], []
    groups = patient_groups(records)
    for record, instances, group in zip(tqdm(records, desc="assembling"), found, groups, strict=True):
        truth = tuple(known_implants(record, assembler.meanings))
        size = (record["width"], record["height"])
        outcome = ImageOutcome(record["image_id"], size, assembler.explain(instances, scale_of(record)), truth)
        matched += outcome.matched
        patients += [group] * len(outcome.matched)
    return matched, patients


def found_in(name: str, folder: Path) -> tuple[list[dict[str, Any]], list[Instances]]:
    """Images of a registered dataset, and what the detector found in each."""
    records = DatasetCatalog.get(name)
    return records, instances_of(records, runs.detections(folder))


def fitted(data: Path, lines: Sequence[ProductLine]) -> PartAssembler:
    """An assembler that knows the training images."""
    register_idd(data, data.name)
    train = runs.dataset_name(data, "train_fold0")
    known = DatasetCatalog.get(train)  # the names of the classes are there after that
    return PartAssembler(MetadataCatalog.get(train).thing_classes, lines=lines).fit(known)


def plain_sets(data: Path, run: Path) -> dict[str, float]:
    """Sets of systems of the test patients, were the most probable system not in every one of them.

    That it is there lifts the coverage above what is asked for, wherever it alone is right more often.
    """
    assembler = fitted(data, default_lines())
    plain = [patch.object(module, "strangeness", improbability) for module in (ranking, ranking_calibration)]
    with plain[0], plain[1]:
        assembler.calibrate(*found_in(runs.dataset_name(data, "val_fold0"), run))
        matched, patients = matched_of(assembler, *found_in(runs.dataset_name(data, "test"), run / f"{data.name}_test"))
    sets = [implant.ranking.system_set for implant, _ in matched if implant.ranking]
    return {
        "coverage": ranking_metrics(matched, patients)["systems"]["coverage"],
        "empty": float(np.mean([not names for names in sets])) if sets else float("nan"),
    }


def improbability(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """[K, n] the nonconformity score of sets that may be empty (Sadinle et al., arXiv:1609.00451)."""
    return 1 - probabilities


def unseen_makers(args: argparse.Namespace, data: Path, run: Path) -> dict[str, Any]:
    """How well known implants are told from those of makers that are neither in the data nor in the list of lines."""
    unseen = runs.make_phantom(args.work / "unseen", args.unseen_images, preset="unseen")
    config, options = DETECT[args.size]
    config = config.format(init="random")  # whose weights are those of the run
    out = run / "unseen"
    options = (*options, "MODEL.MASK_ON", False, "MODEL.WEIGHTS", run / "model_final.pth")
    train_once(out, config, (*options, *of_dataset(unseen, "train_fold0"), *args.options), "--eval-only")
    register_idd(unseen, unseen.name)
    assembler = fitted(data, [line for line in default_lines() if line.system != UNSEEN_SYSTEM])
    assembler.calibrate(*found_in(runs.dataset_name(data, "val_fold0"), run))
    groups = [
        [implant.ranking for implant, _ in matched_of(assembler, *found_in(name, folder))[0] if implant.ranking]
        for name, folder in (
            (runs.dataset_name(data, "test"), run / f"{data.name}_test"),
            (runs.dataset_name(unseen, "train_fold0"), out),
        )
    ]
    fits = [[ranked.fit for ranked in group] for group in groups]
    flags = [[bool(ranked.unknown) for ranked in group] for group in groups]
    read = [[fit for fit in group if fit is not None] for group in fits]
    told: dict[str, Any] = {"num_known": len(fits[0]), "num_unseen": len(fits[1])}
    if not all(read):
        return told  # the detector finds nothing
    is_unseen = np.repeat([False, True], [len(group) for group in read])
    return told | {
        "auroc_of_fit": float(roc_auc_score(is_unseen, -np.concatenate(read))),
        "known_without_fit": 1 - len(read[0]) / len(fits[0]),
        "unseen_without_fit": 1 - len(read[1]) / len(fits[1]),
        "known_called_unknown": float(np.mean(flags[0])),
        "unseen_called_unknown": float(np.mean(flags[1])),
    }


def pretrainings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Init → what its pre-trainings in the work folder predicted: configs change, and weights stay."""
    told: dict[str, dict[str, Any]] = {}
    for init, seed in itertools.product(args.inits, args.seeds):
        path = args.work / f"pretrain_{init}_seed{seed}" / "config.yaml"
        if path.is_file():
            cfg = yaml.safe_load(path.read_text(encoding="utf-8"))
            told.setdefault(init, {})[str(seed)] = {
                **{key: cfg["MODEL"]["MIM"][key] for key in ("TARGET", "TARGET_LAYERS", "MASK_RATIO")},
                "epochs": cfg["SOLVER"]["MAX_EPOCHS"],
                "commit": commit_of(path.parent),
            }
    return told


def settings_of(args: argparse.Namespace, init: str) -> dict[str, Any]:
    """All that a training depends on beside its kind, init and seed."""
    config, options = DETECT[args.size]
    configs = [fingerprint(config.format(init=init), options)]
    names = ["size", "images", "epochs", "options"]
    if INITS[init] is not None:
        configs.append(fingerprint(f"configs/{INITS[init]}.yaml", PRETRAIN[args.size]))
        names.append("pretrain_epochs")
    return {name: getattr(args, name) for name in names} | {"configs": configs, "generator": GENERATOR}


def recorded(name: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """A result file of these settings, if there is one."""
    path = RESULTS / f"{name}.json"
    found = read(path) if path.is_file() else {}
    return found if found.get("settings") == settings else None


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate what is missing, then tell."""
    data = runs.make_phantom(args.work / "phantom", args.images)
    told: dict[str, Any] = {"systems": {}, "parts": {}}
    for seed, kind, init in itertools.product(args.seeds, args.kinds, args.inits):
        name, settings = f"implant_road_{kind}_{init}_seed{seed}", settings_of(args, init)
        results = None if args.smoke else recorded(name, settings)
        if results is None and args.finished and not is_finished(args, data, kind, init, seed):
            continue
        if results is None:
            run, results = detector(args, data, kind, init, seed)
            if kind == "parts":
                results["plain_sets"] = plain_sets(data, run)
            # The last init of the first seed is the road that the configs describe.
            if (kind, init, seed) == ("parts", args.inits[-1], args.seeds[0]):
                results["unseen_makers"] = unseen_makers(args, data, run)
            if not args.smoke:  # so that every cell of a table leads to the file that it is from
                write_result(name, results | {"settings": settings, "training_commit": commit_of(run)})
        told[kind].setdefault(init, {})[seed] = tables(kind, results)
        if "unseen_makers" in results:
            told |= {"unseen_makers": results["unseen_makers"], "unseen_makers_detector": name}
    return {
        "settings": {key: value for key, value in vars(args).items() if key not in ("work", "smoke", "finished")},
        "pretrainings": pretrainings(args),
        "table_3_systems_alone": told.pop("systems"),
        "table_4_with_design_labels": told.pop("parts"),
        **told,
    }


def main() -> None:
    """Parse, measure, write ``results/implant_road.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("output/implant_road"), help="data and runs")
    parser.add_argument("--size", choices=("tiny", "base"), default="tiny")
    parser.add_argument("--images", type=int, default=5572, help="size of the phantom of preset idd")
    parser.add_argument("--unseen-images", type=int, default=400, help="size of the phantom of preset unseen")
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=5.0, help="of the detectors")
    parser.add_argument("--pretrain-epochs", type=float, default=10.0)
    parser.add_argument("--finished", action="store_true", help="tell what is finished, and train nothing")
    parser.add_argument("--smoke", action="store_true", help="minutes, in a temporary folder, no record")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE … of the detectors")
    args = parser.parse_args()
    if refused := [str(option) for option in args.options if str(option).startswith(("ASSEMBLY.", "TEST.AUG."))]:
        parser.error(
            f"{', '.join(refused)}: detections are assembled anew by the defaults, and without test-time augmentation"
        )
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            args.work, args.size, args.images, args.unseen_images = Path(folder), "smoke", 60, 40
            args.inits, args.seeds, args.epochs, args.pretrain_epochs = ["random", "mde"], [0], 1.0, 1.0
            print(json.dumps(measure(args), indent=1))
    else:
        write_result("implant_road", measure(args))


if __name__ == "__main__":
    main()
