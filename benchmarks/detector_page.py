"""Write detector.md: what each ingredient of the part detector is worth, the best that was trained, and its speed.

python benchmarks/detector_page.py
"""

from __future__ import annotations

from statistics import mean, stdev
from typing import Any

from _page import EARLIER_PHANTOM, RESULTS, read, short, source, table, write_page

SIZES = {"APs": "below 32² pixels", "APm": "32² to 96²", "APl": "above"}
KINDS = ("periapical", "panoramic")
EARLIER_CONFIG = (
    "**What was measured before commit 702c71b (26 November 2026) had another config**: one anchor per octave, up to "
    "64 px, on the levels p3 to p5, fewer proposals, no cascade, zoom and box voting."
)
METRICS = {
    "part_AP": "parts, AP",
    "part_AP50": "parts, AP50",
    "rare_part_AP": "rarest third, AP",
    "rare_part_AP50": "rarest third, AP50",
    "implant_AP": "implants, AP",
    "implant_AP50": "implants, AP50",
}


LOSS_WAS_MULTIPLIED = (
    " At this commit the factors multiplied the loss; the seesaw loss multiplies the exponential of the rival's logit, "
    "which was not measured yet."
)


def metric_rows(table_of: dict[str, Any]) -> list[list[str]]:
    """A row for every setting: means and deviations over the seeds, and how many axes are read rightly."""
    rows = []
    for name, setting in table_of.items():
        by_seed = setting["by_seed"].values()
        columns = [[metrics[key] for metrics in by_seed] for key in METRICS]
        spread = [f" ± {stdev(column):.1f}" if len(column) > 1 else "" for column in columns]
        accuracy = mean(axis["accuracy"] for axis in setting["axes"].values())
        cells = [f"{mean(column):.1f}{sd}" for column, sd in zip(columns, spread, strict=True)]
        rows.append([name, *cells, f"{accuracy:.1f}"])
    return rows


def difference_rows(table_of: dict[str, Any]) -> list[list[str]]:
    """What every setting has over its base."""
    rows = []
    for name, setting in table_of.items():
        for key in ("part_AP", "rare_part_AP", "implant_AP"):
            found = setting.get("difference", {}).get(key)
            if found and found["pairs"]:
                interval = "[{:+.1f}, {:+.1f}]".format(*found["ci95"]) if "ci95" in found else "–"
                rows.append([name, METRICS[key], f"{found['mean']:+.1f}", interval])
    return rows


def axis_rows(table_of: dict[str, Any]) -> list[list[str]]:
    """Accuracy of every axis, settings across, with the interval of the difference to its base."""
    axes = sorted(set().union(*(setting["axes"] for setting in table_of.values())))
    return [[axis, *(axis_cell(setting, axis) for setting in table_of.values())] for axis in axes]


def axis_cell(setting: dict[str, Any], axis: str) -> str:
    """Accuracy of an axis, percent; in brackets the 95 % interval of the difference, where there is one."""
    interval = setting.get("axes_difference", {}).get(axis, {}).get("ci95")
    return f"{setting['axes'][axis]['accuracy']:.0f}" + (" [{:+.0f}, {:+.0f}]".format(*interval) if interval else "")


def ablation_section() -> list[str]:
    """One ingredient after the other, and some of them alone."""
    result = read("head_ablation")
    settings = result["settings"]
    bases = {name: setting["base"] for name, setting in settings.items() if "base" in setting}
    return [
        "## What each ingredient is worth",
        f"Phantom of preset idd, {result['num_images']} radiographs; [`{result['config']}`](../{result['config']}) "
        f"without cascade, sampling, box voting and objectness in the scores, with "
        f"`{' '.join(map(str, result['options']))}`. All start from one detector of whole "
        f"implants alone ({result['start_passes']} crops), are trained with {result['image_passes']} crops of fold 0 "
        f"and evaluated on {result['num_val']} images of its validation part; seeds "
        f"{', '.join(map(str, result['seeds']))}. Every row with a + adds to the one above. Last column: axes read "
        "rightly on thirds that were found, percent, mean over the axes. So short a training shows what helps soon, "
        "not where a long one ends. The heads of the cascade have other names than those of the start, and begin with "
        "random weights.",
        table(metric_rows(settings), ["", *METRICS.values(), "axes"]),
        "Differences, paired over the seeds, with 95 % intervals (Student's t):",
        table(
            [[row[0], bases[row[0]], *row[1:]] for row in difference_rows(settings)],
            ["", "against", "metric", "difference", "95 % interval"],
        ),
        "Axes read rightly on thirds that were found, percent, with the intervals of the same differences:",
        table(axis_rows(settings), ["axis", *settings]),
        source(result, "head_ablation"),
    ]


def inference_section() -> list[str]:
    """What the steps after the heads are worth, on one trained detector."""
    result = read("head_inference")
    metrics = {key: label for key, label in METRICS.items() if not key.startswith("rare")}

    def rows(group: str) -> str:
        cells = [
            [
                step,
                *(f"{found['all'][key]:.1f}" for key in metrics),
                *(f"{found[kind]['part_AP50']:.1f}" if kind in found else "–" for kind in KINDS),
                f"{found['seconds_per_image']:.2f}",
            ]
            for step, found in result[group]["by_step"].items()
        ]
        return table(cells, ["", *metrics.values(), *(f"{kind}, parts AP50" for kind in KINDS), "s/image"])

    return [
        "## Between the heads and the detections",
        f"One detector, trained at commit {result['training_commit'][:9]}, on the first "
        f"{result['steps']['num_images']} validation images, where these settings were chosen; every row adds to the "
        "one above, and the last is what the config does. One process on the CPU.",
        rows("steps"),
        f"Test-time augmentation (`TEST.AUG`) on top of it, on the first {result['augmentation']['num_images']} of "
        "them: the four flips, and all eight symmetries of the square.",
        rows("augmentation"),
        f"Other numbers of proposals per image, or tile of it (`MODEL.RPN.POST_NMS_TOPK_TEST`), on the first "
        f"{result['proposals']['num_images']}:",
        rows("proposals"),
        source(result, "head_inference"),
    ]


def long_tail_section() -> list[str]:
    """Losses for long tails on top of the best detector."""
    result = read("long_tail")
    return [
        "## Losses for long tails",
        f"An earlier detector is trained on, for {result['image_passes']} crops with each loss "
        f"([`{result['config']}`](../{result['config']}) from the start of its schedule), and evaluated on "
        f"{result['num_val']} validation images; seeds {', '.join(map(str, result['seeds']))}. Federated: *no* counts "
        "for the categories of a batch and for others that are drawn, until they are half of all. Seesaw: *no* is "
        "softened for categories rarer than the right one of their axis, and sharpened where they score higher "
        "(exponents 0.8 and 2, on sigmoids)."
        + LOSS_WAS_MULTIPLIED
        * result["record"]["commit"].startswith("2eb588b0f"),
        table(metric_rows(result["losses"]), ["", *METRICS.values(), "axes"]),
        "Differences to binary cross-entropy, paired over the seeds, with 95 % intervals (Student's t):",
        table(difference_rows(result["losses"]), ["", "metric", "difference", "95 % interval"]),
        source(result, "long_tail"),
    ]


def best_section() -> list[str]:
    """The best detector, both stages, and its failures."""
    result = read("best_detector")
    options = f" with `{' '.join(map(str, result['options']))}`" if result["options"] else ""
    kinds = {"all": result["metrics"], **result["by_modality"]}
    rows = [[kind, *(f"{metrics[key]:.1f}" for key in METRICS)] for kind, metrics in kinds.items()]
    names = {"stage1": "boxes of whole implants (stage 1)", "stage2": "assembled from parts (stage 2)"}
    columns = ("AP", "AP50", "AP75")
    stages = [
        [
            names[stage],
            *(f"{result['implants'][stage][kind][c]:.1f}" for kind in ("by_system", "any_system") for c in columns),
        ]
        for stage in names
    ]
    sizes = ", ".join(f"{name} {result['all'][key]:.1f}" for key, name in SIZES.items())
    axes = [
        [axis, *(f"{figures[key]:.0f}" for key in ("accuracy", "balanced", "commonest"))]
        for axis, figures in result["axes"].items()
    ]
    before = result["pretraining_hours"]
    common = {kind["num_categories"] for kind in result["by_modality"].values() if "num_categories" in kind}
    kept = f" Those of one kind are means over the {common.pop()} categories that both kinds have." if common else ""
    return [
        "## The detector that reads parts best, of those that a CPU trained",
        f"[`{result['config']}`](../{result['config']}){options}, {result['image_passes']} crops out of "
        f"{result['num_train']} radiographs in {result['training_hours']:.1f} hours"
        f"{f', after {before:.1f} hours of pre-training' if before else ''}, at commit "
        f"{short(result['training_commit'])}; one seed. Evaluated on the test patients; `implants` "
        f"are the detector's own boxes of whole implants.{kept}",
        table(rows, ["", *METRICS.values()]),
        "Implants before and after the second stage:",
        table(stages, ["", *(f"{kind}, {c}" for kind in ("by system", "any system") for c in columns)]),
        f"By size (the area of the mask), AP: {sizes}.",
        "Axes read rightly on thirds that were found, percent: of all; the mean over the values of the axis; and what "
        "one would have who always said the commonest value:",
        table(axes, ["axis", "rightly read", "mean over the values", "commonest value"]),
        "### Where it fails",
        "Categories with the lowest AP50, and how many of them the test patients have: " + worst_categories(result),
        worst_told(result),
        "![The worst images](results/best_detector_worst.jpg)",
        source(result, "best_detector"),
    ]


def worst_categories(result: dict[str, Any], number: int = 6) -> str:
    """The categories that are found worst."""
    known = {name: of for name, of in result["all"]["per_class"].items() if of["AP50"] is not None}
    worst = sorted(known, key=lambda name: known[name]["AP50"])[:number]
    return ", ".join(f"{name} {known[name]['AP50']:.0f} ({known[name]['num_annotations']})" for name in worst) + "."


def worst_told(result: dict[str, Any]) -> str:
    """What the sheet of the worst images shows."""
    number = len(result["worst_image_ids"])
    told = "left: what is there; right: what was found with a score of 30 % or more"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(result["worst_modalities"].items()))
    return f"The {number} images with the lowest AP50 of their own, {kinds} ({told})."


def curve_section() -> list[str]:
    """The curve against training images."""
    result = read("head_curve")
    curve = result["by_training_images"]
    rows = []
    for size, point in curve.items():
        columns = [[metrics[key] for metrics in point["by_seed"].values()] for key in METRICS]
        spreads = [f" ± {stdev(column):.1f}" if len(column) > 1 else "" for column in columns]
        cells = [f"{mean(column):.1f}{spread}" for column, spread in zip(columns, spreads, strict=True)]
        rows.append([size, len(columns[0]), *cells])
    commits = {commit[:9] for point in curve.values() for commit in point.get("commits", {}).values()}
    trained = [f"Trained at the commits {', '.join(sorted(commits))}."] if len(commits) > 1 else []
    named = {f"{size} images": point for size, point in curve.items()}
    return [
        "## What more training images give",
        f"{result['image_passes']} crops for every size of the training set, mean ± SD over the seeds, evaluated on "
        f"the test patients.",
        table(rows, ["training images", "seeds", *METRICS.values()]),
        "![AP50 against the number of training images](results/head_curve.png)",
        "Differences to the next smaller set, paired over the seeds, with 95 % intervals (Student's t):",
        table(difference_rows(named), ["", "metric", "difference", "95 % interval"]),
        *trained,
        source(result, "head_curve"),
    ]


def pixels_section() -> list[str]:
    """What more pixels at test time give, before and after a training on all scales."""
    result = read("head_pixels")

    def rows(by_kind: dict[str, Any]) -> str:
        cells = [
            [kind, size, *(f"{found[key]:.1f}" for key in METRICS)]
            for kind, of_kind in by_kind.items()
            for size, found in of_kind["sizes"].items()
        ]
        return table(cells, ["", "pixels", *METRICS.values()])

    after = []
    if "after_all_scales" in result:
        after = [
            f"The same after {result['image_passes']} more crops, now of all scales (`{' '.join(result['options'])}`); "
            "one seed, and more training by itself:",
            rows(result["after_all_scales"]),
        ]
    counts = " and ".join(f"{of_kind['num_images']} {kind}" for kind, of_kind in result["by_kind"].items())
    return [
        "## What more pixels give",
        "In panoramics thirds are a few pixels wide. An earlier detector, without more "
        f"training, on the first {counts} radiographs of the test set, at other lengths of the shorter edge, and with "
        "what two lengths find united (`TEST.AUG`):",
        rows(result["by_kind"]),
        *after,
        source(result, "head_pixels"),
    ]


def parity_section() -> list[str]:
    """Detectron2's own ViTDet beside ours, trained alike."""
    result = read("vitdet_parity")
    backbones = result["backbones"]
    return [
        f"## Beside Detectron2's own ViTDet: {verdict(backbones)}",
        f"Both from random weights: the same size of ViT (ViT-Ti), the same multi-label head and recipe "
        f"([`{result['config']}`](../{result['config']}) on whole images of 224 px), {result['image_passes']} passes "
        f"of {result['num_train']} training images, evaluated on the validation part, seeds "
        f"{', '.join(map(str, result['seeds']))}; only the backbone differs. The speed of the two "
        "at the size of ViT-B stands below; neither was trained at that size.",
        table(metric_rows(backbones), ["", *METRICS.values(), "axes"]),
        table(difference_rows(backbones), ["", "metric", "difference", "95 % interval"]),
        source(result, "vitdet_parity"),
    ]


def verdict(backbones: dict[str, Any]) -> str:
    """Whether an interval of the differences excludes zero."""
    intervals = [found.get("ci95") for row in backbones.values() for found in row.get("difference", {}).values()]
    return "differences" if any(low > 0 or high < 0 for low, high in filter(None, intervals)) else "no difference found"


def speed_section() -> list[str]:
    """Throughput against detectron2's Mask R-CNN on its own ViTDet-B."""
    result = read("head_speed")

    memory_key = next(key for variant in result["variants"].values() for key in variant if "peak_memory" in key)
    memory = memory_key.replace("peak_memory_gib", "GiB").replace("_", " ")

    def row(name: str, variant: dict[str, Any]) -> list[str]:
        cells = [name]
        for kind in ("inference", "training"):
            cells += [
                f"{variant['images_per_second'][kind]:.2f}",
                f"{variant['times_the_first'][kind]:.2f} ×",
                f"{variant[memory_key][kind]:.1f}",
            ]
        return cells

    conditions = (
        "*detectron2 ViTDet-B* has its own ViT (windows, relative positions), the heavier heads of its ViTDet configs "
        "(two convolutions in the RPN, four with layer normalisation before the boxes, layer normalisation in the mask "
        "head), three channels, and boxes and masks for each category; ours share boxes and masks between categories. "
        "So two recipes are compared. With *our heads* behind Detectron2's backbone, what is left is the backbone. "
        "The table says nothing about accuracy; what fewer proposals cost a small detector stands above."
    )
    if "--weights" not in result["record"]["command"]:
        conditions += " Weights are random: nothing is found, so NMS of detections and the mask head idle in inference."
    return [
        "## Speed",
        f"Mask R-CNN with ViT-B at {result['size']} px on {result['device']}, batch {result['batch']}; the variants "
        "take turns.",
        conditions,
        table(
            [row(*item) for item in result["variants"].items()],
            ["", "inference, images/s", "", memory, "training, images/s", "", memory],
        ),
        source(result, "head_speed"),
    ]


def main() -> None:
    """Write the page from the results that are there; sections whose benchmark was not run yet are left out."""
    builders = {
        "head_ablation": ablation_section,
        "best_detector": best_section,
        "head_curve": curve_section,
        "head_inference": inference_section,
        "head_pixels": pixels_section,
        "long_tail": long_tail_section,
        "vitdet_parity": parity_section,
        "head_speed": speed_section,
    }
    sections = [build() for name, build in builders.items() if (RESULTS / f"{name}.json").is_file()]
    write_page("detector", "The part detector, measured", sections, f"{EARLIER_CONFIG} {EARLIER_PHANTOM}")


if __name__ == "__main__":
    main()
