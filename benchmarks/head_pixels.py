"""What more pixels at test time give a trained part detector, on periapical and on panoramic radiographs.

    python benchmarks/head_pixels.py RUN DATA [--images N] [--sizes 368 736] [--passes P]
    python benchmarks/head_pixels.py --smoke

RUN: OUTPUT_DIR of a detector of configs/idd_tiny.yaml with INPUT.PANORAMIC_ZOOM 1, trained on fold 0 of the phantom in
DATA (such as implant_road.py's). N test images of each kind are evaluated at every size of their
shorter edge, and with what all sizes find united (TEST.AUG). Then the same after the detector was trained on for P
crops of all scales, which show a radiograph as it is at the smallest of the sizes or larger. What is finished in RUN is
not done again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import head_runs as runs
from _record import write_result
from head_curve import subset

from implantdet.data.idd import load_folds, load_idd

KINDS = ("periapical", "panoramic")
CONFIG = "configs/idd_tiny.yaml"
# Of 256 px, as in the config: the radiograph that is seen has a shorter edge of 256 to 730 px.
ALL_SCALES = (
    *("INPUT.CROP.TYPE", "relative_range", "INPUT.CROP.SIZE", "[0.35, 0.35]", "INPUT.PANORAMIC_ZOOM", "1.0"),
    *("SOLVER.BASE_LR", "0.0003"),
)


def found_at(run: Path, data: Path, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Detections on the test images of a dataset folder, at one size or united over several."""
    options = (
        *("INPUT.MIN_SIZE_TEST", sizes[0], "INPUT.PANORAMIC_ZOOM", 1.0),
        *(
            "TEST.AUG.ENABLED",
            len(sizes) > 1,
            "TEST.AUG.MIN_SIZES",
            sizes,
            "TEST.AUG.FLIP",
            False,
            "TEST.AUG.ROT90",
            False,
        ),
    )
    return runs.detect(run, data, "test", options, f"{data.name}_{'_'.join(map(str, sizes))}")


def measure(run: Path, data: Path, work: Path, num_images: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Metrics of ``run`` by kind of radiograph and size; the parts of the test set get folders in ``work``."""
    kinds = {image["id"]: image["modality"] for image in load_idd(data)["images"]}
    truth = runs.ground_truth(data, "test")
    told: dict[str, Any] = {}
    for kind in KINDS:
        ids = [image_id for image_id in load_folds(data)["test"] if kinds[image_id] == kind][:num_images]
        if not ids:
            continue  # a small phantom
        folder = subset(data, work / f"{kind}_{len(ids)}", test=ids)
        own = truth | {
            "images": [image for image in truth["images"] if image["id"] in set(ids)],
            "annotations": [record for record in truth["annotations"] if record["image_id"] in set(ids)],
        }
        found = {choice: found_at(run, folder, choice) for choice in (*((size,) for size in sizes), sizes)}
        told[kind] = {
            "num_images": len(ids),
            "sizes": {
                " and ".join(map(str, choice)): {
                    **runs.metrics(own, detections),
                    "axes": runs.axis_accuracy(own, detections),
                }
                for choice, detections in found.items()
            },
        }
    return told


def trained_on(run: Path, data: Path, passes: int, config: str = CONFIG, options: tuple[str, ...] = ()) -> Path:
    """The detector of ``run`` after more training on crops of all scales."""
    length = runs.lengths(passes / runs.num_train(data))
    weights = ("MODEL.WEIGHTS", run / "model_final.pth")
    return runs.train(run / "all_scales", data, (*length, *weights, *ALL_SCALES, *options), config)


def main() -> None:
    """Evaluate what is missing, then write the table."""
    parser = runs.parser_of_run(__doc__)
    parser.add_argument("--images", type=int, default=132, help="of each kind, at most")
    parser.add_argument("--sizes", type=int, nargs="+", default=[368, 736])
    parser.add_argument("--passes", type=int, default=8000, help="crops of the training on all scales; 0: none")
    args = parser.parse_args()
    if args.smoke:
        with tempfile.TemporaryDirectory() as folder:
            data = runs.make_phantom(Path(folder) / "phantom", 60)
            run = runs.train(Path(folder) / "run", data, (*runs.lengths(1.0), *runs.HEAD, *runs.SMOKE))
            print(measure(run, data, run, 4, (64, 96)))
            after = trained_on(run, data, 24, runs.CONFIG, (*runs.HEAD, *runs.SMOKE))
            print(measure(after, data, run, 4, (64, 96)))
    elif args.data is None:
        parser.error("RUN and DATA are needed")
    else:
        sizes = tuple(args.sizes)
        told: dict[str, Any] = {"by_kind": measure(args.run, args.data, args.run, args.images, sizes)}
        if args.passes:
            after = trained_on(args.run, args.data, args.passes)
            told |= {"config": CONFIG, "image_passes": args.passes, "options": ALL_SCALES}
            told |= {"after_all_scales": measure(after, args.data, args.run, args.images, sizes)}
        write_result("head_pixels", told)


if __name__ == "__main__":
    main()
