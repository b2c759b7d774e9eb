"""Write foundation.md: set-up, speed of backbone and evaluator, and the road on real radiographs, from results/*.json.

python benchmarks/foundation_page.py
"""

from __future__ import annotations

from _page import read, source, table, write_page

SIDES = {
    "detectron2_vitdet": "detectron2 ViTDet-B (window 14, relative positions)",
    "ours": "ours, every block global (the default)",
    "ours_windows": "ours, the same windows as ViTDet-B",
}


def setup_section() -> list[str]:
    """What `make test` costs before its first test."""
    result = read("setup_time")
    return [
        "## Set-up",
        f"A fresh environment from the locks takes {result['first_run_seconds'] / 60:.1f} minutes and "
        f"{result['venv_gigabytes']:.1f} GB; with everything in place, {result['second_run_seconds']:.1f} seconds.",
        source(result, "setup_time"),
    ]


def backbone_section() -> list[str]:
    """Our backbone against detectron2's."""
    result = read("backbone_speed")
    rows = [
        [
            label,
            *(
                text
                for step in ("forward", "forward_backward")
                for text in (
                    f"{result[step][side]['median_seconds']:.2f}",
                    f"{result[step][side]['speedup_median_over_rounds']:.2f} ×",
                )
            ),
        ]
        for side, label in SIDES.items()
    ]
    memory = [
        [setting, "out of memory" if "failed_with_exit_code" in usage else f"{usage['peak_gib']:.1f}"]
        for setting, usage in result["panoramic"].items()
    ]
    settings = result["settings"]
    return [
        "## Backbone",
        f"ViT-B with its pyramid, {settings['img_size']} px, batch {settings['batch_size']}, "
        f"{settings['threads']} threads, {settings['rounds']} rounds in which the sides take turns. "
        "Speed: median over rounds, ViTDet-B = 1.",
        table(rows, ["", "forward, s", "speed", "forward + backward, s", "speed"]),
        "Peak memory of one panoramic radiograph of 1440 × 2944 pixels, one channel, GiB of the whole process, with "
        "what building the model took; a forward pass that needs less than that does not show:",
        table(memory, ["", "GiB"]),
        source(result, "backbone_speed"),
    ]


def evaluator_section() -> list[str]:
    """Our evaluator against pycocotools."""
    result = read("evaluator_speed")
    seconds = result["median_seconds"]
    return [
        "## Evaluator",
        f"{result['num_boxes']} boxes and {result['num_detections']} detections on {result['num_images']} images: "
        f"{seconds['implantdet']:.2f} s against {seconds['pycocotools']:.1f} s of pycocotools, "
        f"**{result['speedup']:.0f} × as fast**; the largest difference of the twelve metrics is "
        f"{result['largest_difference_of_12_metrics_percent']:.1e} percentage points.",
        source(result, "evaluator_speed"),
    ]


def road_section() -> list[str]:
    """The road on real panoramic radiographs: overfitting four, then a training."""
    overfit, training = read("overfit_opg"), read("opg_training")
    last = training["results_of_last_evaluation"]["bbox"]
    rows = [
        [name, metrics["num_annotations"], f"{metrics['AP']:.1f}", f"{metrics['AP50']:.1f}"]
        for name, metrics in last["per_class"].items()
    ]
    solver = training["solver"]
    return [
        "## Real radiographs",
        "The public set of [datasets/README.md](../datasets/README.md): four findings on panoramic radiographs. Most "
        "of its boxes of class `Implant` are root-canal-treated teeth, so **no number here is about implants**; they "
        "show that the road from import to evaluation is passable.",
        f"Four radiographs with {overfit['num_boxes']} boxes, learnt by heart: AP50 "
        f"{overfit['results']['bbox']['AP50']:.1f} (needed: {overfit['AP50_percent_needed']:.0f}), AP "
        f"{overfit['results']['bbox']['AP']:.1f}, in {overfit['seconds_with_evaluations'] / 60:.1f} minutes.",
        source(overfit, "overfit_opg"),
        f"Training `opg_vit_tiny` from random weights at {training['image_size']} px, {solver['MAX_EPOCHS']:.0f} "
        "epochs, one seed, folds grouped by source; validation on fold 0 at the end: "
        f"**AP {last['AP']:.1f}, AP50 {last['AP50']:.1f}**.",
        table(rows, ["class", "boxes", "AP", "AP50"]),
        "![Course of the training](results/opg_training.png)",
        source(training, "opg_training"),
    ]


def main() -> None:
    """Write the page."""
    sections = [setup_section(), backbone_section(), evaluator_section(), road_section()]
    write_page("foundation", "The foundation, measured", sections)


if __name__ == "__main__":
    main()
