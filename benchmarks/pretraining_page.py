"""Write pretraining.md: speed of a step, variants of MDE's default, and what a pre-training is worth.

python benchmarks/pretraining_page.py
"""

from __future__ import annotations

from typing import Any

from _page import RESULTS, read, source, table, write_page

SIDES = {
    "transformers": "transformers' ViTMAEForPreTraining (8 decoder blocks of 512)",
    "ours_equal": "ours, the same encoder, decoder and mask ratio",
    "ours_mae_default": "ours, configs/pretrain_mae.yaml",
    "ours_mde_default": "ours, configs/pretrain_mde.yaml",
}
INITS = {
    "random": "random",
    "mae": "MAE",
    "mde_paper": "MDE, the paper's recipe",
    "mde": "MDE, our default",
    "mae_light_decoder": "MAE, decoder of 2 blocks",
    "mde_upper_layers": "MDE, targets from blocks 7–12",
    "mde_no_pixels": "MDE, no pixel term",
    "mde_patch_embed": "MDE, patch embeddings and pixel term",
    "mde_half_masked": "MDE, 50 % masked",
}
# No PSNR: inits with other mask ratios and decoders reconstruct other patches in other ways.
METRICS = {
    "features_linear": "linear probe",
    "features_knn": "k-NN",
    "AP": "AP",
    "AP50": "AP50",
    "part_AP": "parts, AP",
    "part_AP50": "parts, AP50",
    "implant_AP": "implants, AP",
    "implant_AP50": "implants, AP50",
}
COMPARISONS = {"mim_opg": "Real panoramic radiographs", "mim_phantom": "The phantom of preset idd"}


def speed_section() -> list[str]:
    """A step of pre-training against transformers."""
    result = read("mim_speed")
    settings = result["settings"]
    counted = settings.get("counted", "without attention")  # files do not say it if they are from before it counted
    rows = [
        [
            label,
            f"{result['sides'][side]['images_per_second']:.2f}",
            f"{result['sides'][side]['speedup_median_over_rounds']:.2f} ×",
            f"{result['sides'][side]['gflop_per_image']:.0f}",
        ]
        for side, label in SIDES.items()
    ]
    return [
        "## Speed of a step",
        f"Forward and backward, ViT-B/16 at {settings['img_size']} px, {settings['threads']} threads, batch "
        f"{settings['batch_size']}, {settings['precision']}; {settings['rounds']} rounds, the sides take turns. "
        "Configs are those of the commit below.",
        table(rows, ["", "images/s", "speed", f"GFLOP per image ({counted})"]),
        source(result, "mim_speed"),
    ]


def cell(of_init: dict[str, float] | None) -> str:
    """Mean ± standard deviation over the runs."""
    if of_init is None:
        return "–"
    return f"{of_init['mean']:.1f}" + (f" ± {of_init['sd']:.1f}" if "sd" in of_init else "")


def summary_table(summary: list[dict[str, Any]], labels: float, names: list[str]) -> str:
    """Inits down, metrics across."""
    metrics = {row["metric"]: row for row in summary if row["labels"] == labels and row["metric"] in METRICS}
    keys = [key for key in METRICS if key in metrics]
    rows = [[INITS.get(name, name), *(cell(metrics[key]["inits"].get(name)) for key in keys)] for name in names]
    return table(rows, ["init", *(METRICS[key] for key in keys)])


def differences_table(summary: list[dict[str, Any]], labels: float) -> str:
    """Paired differences with their 95 % intervals."""
    rows = []
    for row in summary:
        if row["labels"] == labels and row["metric"] in METRICS:
            for pair, found in row["differences"].items():
                interval = found.get("ci95")
                told = f"[{interval[0]:+.1f}, {interval[1]:+.1f}]" if interval else "–"
                names = " − ".join(INITS[name] for name in pair.split(" - "))
                rows.append([METRICS[row["metric"]], names, f"{found['mean']:+.1f}", told, found["pairs"]])
    return table(rows, ["metric", "difference", "mean", "95 % interval", "pairs"])


def initials(result: dict[str, Any]) -> list[str]:
    """Names of the inits in the order in which they were run."""
    return list(dict.fromkeys(run["init"] for run in result["runs"]))


def choice_section() -> list[str]:
    """Probes of the default and of variants of it."""
    result = read("mim_targets")
    settings = result["settings"]
    return [
        "## Which target",
        "Probes of frozen features on the phantom (balanced accuracy over the axes of design and the system, percent) "
        f"after {settings['epochs'][0]:g} epochs; seeds {', '.join(map(str, settings['seeds']))}.",
        summary_table(result["summary"], 0.0, initials(result)),
        source(result, "mim_targets"),
    ]


def comparison_section(name: str, title: str) -> list[str]:
    """What an init is worth on one dataset."""
    result = read(name)
    settings = result["settings"]
    paragraphs = [
        f"## {title}",
        f"{settings['epochs'][0]:g} epochs of pre-training on the images of the training folds; seeds "
        f"{', '.join(map(str, settings['seeds']))}; all else alike.",
    ]
    for labels in sorted({row["labels"] for row in result["summary"]}):
        what = f"Fine-tuned on {100 * labels:.0f} % of the labels:" if labels else "Before fine-tuning:"
        paragraphs += [what, summary_table(result["summary"], labels, initials(result))]
        if len(settings["seeds"]) > 1:
            paragraphs.append(differences_table(result["summary"], labels))
    return [*paragraphs, source(result, name)]


def main() -> None:
    """Write the page from the results that are there; sections whose benchmark was not run yet are left out."""
    sections = [speed_section()]
    if (RESULTS / "mim_targets.json").is_file():
        sections.append(choice_section())
    sections += [comparison_section(*item) for item in COMPARISONS.items() if (RESULTS / f"{item[0]}.json").is_file()]
    write_page("pretraining", "Pre-training without labels, measured", sections)


if __name__ == "__main__":
    main()
