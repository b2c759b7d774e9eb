"""Does the whole road lead somewhere? Four real radiographs, trained on until they are known by heart.

    python benchmarks/overfit_opg.py PATH/TO/opg [--work DIR]

PATH/TO/opg is a dataset folder (``implantdet import`` and ``implantdet folds``, see datasets/README.md). Mapper,
model, optimizer, schedule, evaluator and checkpoints are those of ``train_net.py``; only the augmentation is off.
AP50 on the same four images has to reach 95; otherwise something on the road is wrong, and the script fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _curve import read_curve
from _record import write_result
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

import implantdet  # noqa: F401  registers the components
from implantdet.config import add_implantdet_config
from implantdet.data.register import register_idd
from implantdet.engine.setup import complete_from_data
from implantdet.engine.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "opg_vit_tiny.yaml"
NAME = "overfit_four"
NUM_IMAGES = 4
AP50 = 95.0  # percent
SETTINGS = {
    "INPUT.FLIP_PROB": 0.0,
    "INPUT.ROT90_PROB": 0.0,
    "INPUT.NOISE_FRACTION": 0.0,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": NUM_IMAGES,
    "SOLVER.MAX_EPOCHS": 500.0,  # an epoch is one step
    "SOLVER.WARMUP_EPOCHS": 20.0,
    "SOLVER.EVAL_EPOCHS": 50.0,
}


def register_four(root: Path) -> list[dict[str, Any]]:
    """Register four images of fold 0's training set, evenly spaced, and return their dataset dicts."""
    register_idd(root, "overfit_source")
    source = "overfit_source_train_fold0"
    records = DatasetCatalog.get(source)
    records = records[:: len(records) // NUM_IMAGES][:NUM_IMAGES]
    DatasetCatalog.register(NAME, lambda: records)
    metadata = MetadataCatalog.get(source)
    MetadataCatalog.get(NAME).set(
        thing_classes=metadata.thing_classes,
        thing_dataset_id_to_contiguous_id=metadata.thing_dataset_id_to_contiguous_id,
    )
    return records


def build_cfg(output_dir: Path) -> CfgNode:
    """The config of the real training, on the four images."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([part for item in SETTINGS.items() for part in item])
    cfg.merge_from_list(["DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,), "OUTPUT_DIR", str(output_dir)])
    complete_from_data(cfg)
    cfg.freeze()
    return cfg


def main() -> None:
    """Train, print and write ``results/overfit_opg.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="dataset folder")
    parser.add_argument("--work", type=Path, help="empty folder for checkpoints and logs; otherwise a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        output_dir = arguments.work or Path(temporary)
        output_dir.mkdir(parents=True, exist_ok=True)
        setup_logger(str(output_dir))
        records = register_four(arguments.root)
        trainer = Trainer(build_cfg(output_dir))
        trainer.resume_or_load(resume=False)
        start = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - start
        curve = read_curve(output_dir)
        results = json.loads((output_dir / "results.json").read_text(encoding="utf-8"))
    reached = results["bbox"]["AP50"]
    write_result(
        "overfit_opg",
        {
            "config": CONFIG.name,
            "settings": SETTINGS,
            "images": [Path(record["file_name"]).name for record in records],
            "num_boxes": sum(len(record["annotations"]) for record in records),
            "seconds_with_evaluations": seconds,
            "AP50_percent_needed": AP50,
            "results": results,
            "curve": curve,
        },
    )
    print(f"AP50 {reached:.1f} on the {NUM_IMAGES} images after {seconds / 60:.1f} minutes; needed: {AP50}")
    if reached < AP50:
        sys.exit(1)


if __name__ == "__main__":
    main()
