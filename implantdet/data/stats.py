"""Class distribution (the paper's Table 2), boxes per image, box sizes and shapes, as numbers and as a picture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from implantdet.data.files import written_whole
from implantdet.taxonomy import COLOURS

_COCO_SIZES = (32, 96)  # sides in pixels that part small, medium and large in COCO's AP by size
_PLAIN = "#5b7083"
_SHOWN_MEDIANS = (("width", 0), ("height", 0), ("aspect", 2))  # quantity and its digits on the screen


def dataset_stats(content: dict[str, Any]) -> dict[str, Any]:
    """Count what ``content``, from :func:`implantdet.data.idd.load_idd`, holds.

    Returns:
        Content of stats.json: numbers of images and boxes, one entry per class, boxes per image, box sizes in
        pixels, height / width, and the imbalance: boxes of the most frequent class per box of the rarest that
        has any.
    """
    annotations, categories = content["annotations"], content["categories"]
    class_of = np.array([annotation["category_id"] for annotation in annotations], dtype=int)
    image_of = np.array([annotation["image_id"] for annotation in annotations], dtype=int)
    sides = np.array([annotation["bbox"][2:] for annotation in annotations], dtype=float).reshape(-1, 2)
    classes = []
    for category in categories:
        own = class_of == category["id"]
        classes.append(
            {
                "name": category["name"],
                "supercategory": category.get("supercategory", ""),
                "boxes": int(own.sum()),
                "share": float(own.mean()) if len(own) else 0.0,
                "images": len(set(image_of[own].tolist())),
                "width": _quantiles(sides[own, 0]),
                "height": _quantiles(sides[own, 1]),
                "aspect": _quantiles(sides[own, 1] / sides[own, 0]),
            }
        )
    boxes_of = Counter(image_of.tolist())
    per_image = np.array([boxes_of[image["id"]] for image in content["images"]], dtype=int)
    counts = [entry["boxes"] for entry in classes if entry["boxes"]]
    size = np.sqrt([annotation["area"] for annotation in annotations])  # of masks, where there are any
    small, medium = _COCO_SIZES
    return {
        "images": len(content["images"]),
        "boxes": len(annotations),
        "masks": sum("segmentation" in annotation for annotation in annotations),
        "classes": classes,
        "imbalance": max(counts) / min(counts) if counts else None,
        "classes_without_boxes": [entry["name"] for entry in classes if not entry["boxes"]],
        "boxes_per_image": {
            "mean": float(per_image.mean()),
            "none": int((per_image == 0).sum()),
            **_quantiles(per_image),
        },
        "sizes": {
            "small": int((size < small).sum()),
            "medium": int(((size >= small) & (size < medium)).sum()),
            "large": int((size >= medium).sum()),
        },
        "width": _quantiles(sides[:, 0]),
        "height": _quantiles(sides[:, 1]),
        "aspect": _quantiles(sides[:, 1] / sides[:, 0]),
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    names = ("min", "p5", "median", "p95", "max")
    return dict(zip(names, np.quantile(values, (0, 0.05, 0.5, 0.95, 1)).round(3).tolist(), strict=True))


def stats_rows(stats: dict[str, Any]) -> list[list[str]]:
    """Table of the classes for the screen, first row the headings."""
    rows = [["class", "boxes", "share", "images", "width px", "height px", "height/width"]]
    for entry in stats["classes"]:
        middle = [f"{entry[key]['median']:.{digits}f}" if entry[key] else "–" for key, digits in _SHOWN_MEDIANS]
        rows.append([entry["name"], str(entry["boxes"]), f"{entry['share']:.1%}", str(entry["images"]), *middle])
    return rows


def plot_stats(content: dict[str, Any], stats: dict[str, Any], path: Path) -> None:
    """Draw the four panels to ``path``, a PNG file, which gets its name when it is whole."""
    classes = stats["classes"]
    class_rows = 0.28 * len(classes) + 1.2  # inches
    figure = Figure(figsize=(12, class_rows + 4.2), layout="constrained")
    axes = figure.subplots(2, 2, height_ratios=[class_rows, 4.2])
    figure.suptitle(f"{stats['images']} images, {stats['boxes']} boxes, {len(classes)} classes", fontsize=14)
    sides = np.array([annotation["bbox"][2:] for annotation in content["annotations"]], dtype=float).reshape(-1, 2)
    class_of = np.array([annotation["category_id"] for annotation in content["annotations"]], dtype=int)
    _plot_classes(axes[0, 0], classes)
    by_class = [sides[class_of == category["id"]] for category in content["categories"]]
    _plot_aspects(axes[0, 1], classes, [own[:, 1] / own[:, 0] for own in by_class])
    image_of = [annotation["image_id"] for annotation in content["annotations"]]
    _plot_boxes_per_image(axes[1, 0], np.unique(image_of, return_counts=True)[1], stats)
    _plot_sizes(axes[1, 1], sides)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _colours(classes: list[dict[str, Any]]) -> list[str]:
    palette = {key: to_hex((red / 255, green / 255, blue / 255)) for key, (red, green, blue) in COLOURS.items()}
    return [palette.get(entry["supercategory"], _PLAIN) for entry in classes]


def _label_classes(axis: Axes, classes: list[dict[str, Any]]) -> None:
    axis.set_yticks(range(len(classes)), [entry["name"] for entry in classes])
    axis.set_ylim(len(classes) - 0.5, -0.5)  # first class on top


def _plot_classes(axis: Axes, classes: list[dict[str, Any]]) -> None:
    bars = axis.barh(range(len(classes)), [entry["boxes"] for entry in classes], color=_colours(classes), height=0.7)
    axis.bar_label(bars, [f"{entry['boxes']}  ({entry['share']:.1%})" for entry in classes], padding=4, fontsize=9)
    _label_classes(axis, classes)
    axis.margins(x=0.22)
    axis.set(title="Boxes per class", xlabel="boxes")


def _plot_aspects(axis: Axes, classes: list[dict[str, Any]], aspects: list[np.ndarray]) -> None:
    shown = [index for index, values in enumerate(aspects) if len(values)]
    if shown:
        style = {"color": _PLAIN, "linewidth": 1}
        boxes = axis.boxplot(
            [aspects[index] for index in shown],
            positions=shown,
            orientation="horizontal",
            widths=0.55,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            medianprops={"color": "black", "linewidth": 1.6},
            whiskerprops=style,
            capprops=style,
        )
        for patch, index in zip(boxes["boxes"], shown, strict=True):
            patch.set(facecolor=_colours(classes)[index], alpha=0.55, edgecolor=_PLAIN)
        _log_axis(axis, "x")
    axis.axvline(1, color="0.7", linewidth=0.8, zorder=0)
    _label_classes(axis, classes)
    axis.tick_params(labelleft=False)  # the panel on the left names them
    axis.set(title="Shape (boxes: middle half, whiskers: 90 %)", xlabel="height / width")


def _plot_boxes_per_image(axis: Axes, counts: np.ndarray, stats: dict[str, Any]) -> None:
    per_image = np.concatenate([counts, np.zeros(stats["boxes_per_image"]["none"], dtype=int)])
    axis.hist(per_image, bins=(np.arange(per_image.max(initial=0) + 2) - 0.5).tolist(), color=_PLAIN, rwidth=0.85)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    mean = stats["boxes_per_image"]["mean"]
    axis.axvline(mean, color="#cc3311", linewidth=1.2)
    axis.annotate(
        f"mean {mean:.1f}", (mean, 1), (4, -12), xycoords=("data", "axes fraction"), textcoords="offset points"
    )
    axis.set(title="Boxes per image", xlabel="boxes in one image", ylabel="images")


def _plot_sizes(axis: Axes, sides: np.ndarray) -> None:
    if len(sides):
        low, high = sides.min() * 0.8, sides.max() * 1.25
        drawn = axis.hexbin(
            *sides.T, gridsize=45, xscale="log", yscale="log", bins="log", cmap="viridis", mincnt=1, linewidths=0.1
        )
        axis.figure.colorbar(drawn, ax=axis, label="boxes")
        width = np.geomspace(low, high, 50)
        for side, style, parts in zip(_COCO_SIZES, (":", "--"), ("small | medium", "medium | large"), strict=True):
            axis.plot(width, side**2 / width, style, color="#cc3311", linewidth=1.3, label=f"{parts}: {side}² pixels")
        axis.legend(loc="lower left", fontsize=9, framealpha=0.9)
        axis.set(xlim=(low, high), ylim=(low, high))
        _log_axis(axis, "x")
        _log_axis(axis, "y")
    axis.set(
        title="Box sizes, with COCO's limits (there of masks, if any)",
        xlabel="width in pixels",
        ylabel="height in pixels",
    )


def _log_axis(panel: Axes, which: str) -> None:
    """Logarithmic, with plain numbers at 1, 2 and 5."""
    (panel.set_xscale if which == "x" else panel.set_yscale)("log")
    axis = panel.xaxis if which == "x" else panel.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
