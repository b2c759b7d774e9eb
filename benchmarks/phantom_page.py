"""Write benchmarks/phantom.md from the results of the other phantom_*.py scripts: no number is typed by hand.

python benchmarks/phantom_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _page import EARLIER_GENERATOR, source

HERE = Path(__file__).parent
RESULTS = HERE / "results"

INTRODUCTION = f"""# The phantom

Synthetic radiographs of implants whose geometry is known exactly (`implantdet phantom`). This page is written by
`benchmarks/phantom_page.py` from the files in `benchmarks/results`. {EARLIER_GENERATOR}

![Radiographs of preset idd](results/phantom_idd.jpg)
![The same with thirds (blue, yellow, green), implants (orange) and product lines](results/phantom_idd_boxes.jpg)
"""
GALLERY = """## Presets

| preset | plain | with boxes and names |
|---|---|---|
"""


def read(name: str) -> dict[str, Any]:
    """One result file."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `python benchmarks/{name}.py` first")
    return json.loads(path.read_text(encoding="utf-8"))


def statistics_section() -> str:
    """Phantom against real radiographs."""
    result = read("phantom_statistics")
    inside = sum(row["inside"] for row in result["table"])
    lines = [
        "## Does it measure like real radiographs?",
        "",
        f"{inside} of {len(result['table'])} quantities lie in the range that was measured on small sets of real "
        "radiographs, or, where only one value was, in one that was set around it. As in these sets, implants "
        "fill as much of the frame whatever their length: so the size of teeth and trabeculae in pixels says something "
        f"of a short implant's system, too. {result['images']} images of preset `idd` and {result['images'] // 8} "
        f"panoramics, seed {result['seed']}.",
        "",
        "| modality | quantity | phantom | real | range | inside |",
        "|---|---|---:|---|---|---|",
    ]
    lines += [
        f"| {row['modality']} | {row['quantity'].replace('_', ' ')} | {row['phantom']:g} | {row['real']} | "
        f"{row['low']:g}–{row['high']:g} | {'yes' if row['inside'] else '**no**'} |"
        for row in result["table"]
    ]
    return "\n".join([*lines, "", source(result, "phantom_statistics"), ""])


def geometry_section() -> str:
    """Shadows against voxels."""
    result = read("phantom_geometry")
    summary = result["summary"]
    length = "length from the annotated axis against that of the solid (no voxels), error in %"
    return f"""## Is the ground truth true?

{summary["implants"]} random implants of all product lines in random periapical views, against rays marched through
voxels of 0.05 mm:

| check | worst of {summary["implants"]} | promised |
|---|---:|---:|
| overlap of the masks (IoU) | {summary["iou_min"]:g} (mean {summary["iou_mean"]:g}) | ≥ 0.97 |
| box against its own mask, pixels | {summary["box_error_pixels_max"]:g} | ≤ 1 |
| box against the voxels' shadow, pixels | {summary["box_against_voxels_pixels_max"]:g} | – |
| {length} | {summary["length_error_percent_max"]:g} | ≤ 1 |
| area of the shadow, error in % | {summary["area_error_percent_max"]:g} | – |

{source(result, "phantom_geometry")}
"""


def speed_section() -> str:
    """Time and memory."""
    result = read("phantom_speed")
    hardware = result["record"]["hardware"]
    keys = (
        "preset",
        "images",
        "workers",
        "seconds",
        "images_per_second",
        "worker_peak_mib",
        "main_process_peak_mib",
        "images_mib",
        "annotations_mib",
    )
    row = " | ".join(str(result[key]) for key in keys)
    return f"""## How long does it take?

| preset | images | workers | seconds | images/s | largest worker, MiB | main process, MiB | images, MiB | labels, MiB |
|---|---:|---:|---:|---:|---:|---:|---:|---:|
| {row} |

{hardware["cpu"]}, {hardware["cores"]} cores; load average at the end {hardware["load_average"][0]:.1f}. Promised: 5572
images in under {result["target_seconds"]} s on 2 cores, under {result["target_worker_mib"]} MiB per worker.

{source(result, "phantom_speed")}
"""


def gallery_section() -> str:
    """Contact sheets of the other presets."""
    rows = [
        f"| `{preset}` | ![]({plain}) | ![]({boxes}) |"
        for preset in ("mini", "panoramic", "unseen")
        for plain, boxes in [(f"results/phantom_{preset}.jpg", f"results/phantom_{preset}_boxes.jpg")]
    ]
    return GALLERY + "\n".join(rows) + "\n"


def main() -> None:
    """Write the page."""
    sections = [INTRODUCTION, statistics_section(), geometry_section(), speed_section(), gallery_section()]
    (HERE / "phantom.md").write_text("\n".join(sections), encoding="utf-8")
    print(HERE / "phantom.md")


if __name__ == "__main__":
    main()
