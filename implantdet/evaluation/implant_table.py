"""The figures about implants as text, for the log."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "D-ECE")
STAGES = {"stage1": "detected whole", "stage2": "assembled"}


def implant_table(metrics: dict[str, Any]) -> str:
    """Tables of what ``ImplantEvaluator`` writes under ``implants``: both stages, grouping, axes, systems."""
    return "\n".join(
        [
            _stages(metrics),
            _facts(metrics),
            _axes(metrics["axes"]),
            "Systems, true down, found across (score from 0.5 on):",
            _matrix(metrics["system_confusion"]["labels"], metrics["system_confusion"]["confusion"]),
        ]
    )


def _stages(metrics: dict[str, Any]) -> str:
    rows: list[list[Any]] = [["design parts", "", *(metrics["parts"].get(column) for column in COLUMNS), None]]
    rows.append(["all detections", "", *[None] * (len(COLUMNS) - 1), metrics["detections"]["D-ECE"], None])
    for stage, title in STAGES.items():
        for kind in ("by_system", "any_system"):
            figures = (metrics[stage] or {}).get(kind)
            if figures:
                values = [figures[column] for column in COLUMNS]
                rows.append([title, kind.replace("_", " "), *values, metrics[stage]["fps"]])
    return tabulate(rows, ["implants", "", *COLUMNS, "images/s"], "pipe", floatfmt=".2f")


def _facts(metrics: dict[str, Any]) -> str:
    grouping, inferred = metrics["grouping"], metrics["inferred"]
    rows = [
        ["grouped exactly", grouping["exact"], f"of {grouping['num_implants']} implants with a detected third"],
        ["missed thirds inferred", inferred["recall"], f"of {inferred['num_missed']}"],
        ["inferred thirds right", inferred["precision"], f"of {inferred['num_judged']}"],
        ["their edges in 1.96 SD", inferred["edges_within_95"], "0.950 if deviations are right"],
    ]
    for name, figures in (("system", metrics["systems"]), ("product line", metrics["lines"])):
        told = f"of {figures['num_implants']} found implants"
        rows += [
            [f"{name} top-1", figures["top1"], told],
            [f"{name} top-3", figures["top3"], told],
            [f"{name} in its set", figures["coverage"], f"of {figures['mean_size']:.2f} names on average"],
        ]
    systems = metrics["systems"]
    rows.append(["called unknown", systems["unknown"], "of those that could be judged"])
    rows += [[f"{name} in its set", share, ""] for name, share in systems["coverage_of"].items()]
    return tabulate(rows, ["share", "", ""], "pipe", floatfmt=".3f")


def _axes(axes: dict[str, dict[str, Any]]) -> str:
    rows = [[axis, figures["accuracy"], figures["balanced_accuracy"]] for axis, figures in axes.items()]
    return tabulate(rows, ["axis", "accuracy", "balanced"], "pipe", floatfmt=".3f")


def _matrix(labels: list[str], matrix: list[list[int]]) -> str:
    return tabulate([[label, *row] for label, row in zip(labels, matrix, strict=True)], ["", *labels], "pipe")
