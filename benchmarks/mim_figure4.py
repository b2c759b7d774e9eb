"""The paper's figure 4: original and masked radiographs, and what MAE and MDE see behind the mask; PSNR beside it.

    python benchmarks/mim_figure4.py output/pretrain_mae output/pretrain_mde

Takes OUTPUT_DIRs of finished pre-trainings that have the same DATASETS.TEST. Both models get the same masks. Writes
``results/mim_figure4.json`` and ``mim_figure4.png``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from _record import RESULTS, write_result
from detectron2.config import CfgNode, get_cfg
from detectron2.evaluation import inference_on_dataset

from implantdet.config import add_implantdet_config
from implantdet.data.register import register_idd
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.pretrainer import Pretrainer
from implantdet.evaluation.reconstruction import ReconstructionEvaluator, save_figure


def read_config(output_dir: Path, mask_ratio: float) -> CfgNode:
    """The config of a finished pre-training, with another mask ratio, and its dataset registered."""
    cfg = get_cfg()
    add_implantdet_config(cfg)
    cfg.merge_from_file(str(output_dir / "config.yaml"))
    cfg.MODEL.MIM.MASK_RATIO = mask_ratio
    register_idd(cfg.DATASETS.ROOT, cfg.DATASETS.NAME)
    return cfg


def main() -> None:
    """Reconstruct by both models, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mae", type=Path, help="OUTPUT_DIR of the MAE pre-training")
    parser.add_argument("mde", type=Path, help="OUTPUT_DIR of the MDE pre-training")
    parser.add_argument("--mask-ratio", type=float, default=0.75, help="of both, whatever they were trained with")
    parser.add_argument("--images", type=int, default=64, help="images that PSNR is measured on")
    args = parser.parse_args()
    columns, ratios = {}, {}
    for caption, output_dir in (("MAE", args.mae), ("MDE", args.mde)):
        cfg = read_config(output_dir, args.mask_ratio)
        model = Pretrainer.build_model(cfg)
        Checkpointer(model).load(str(output_dir / "model_final.pth"))
        loader = Pretrainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
        with tempfile.TemporaryDirectory() as folder:  # the run's own files are of its own mask ratio
            evaluator = ReconstructionEvaluator(folder, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, args.images)
            measured = inference_on_dataset(model, loader, evaluator)["reconstruction"]
        ratios["flat_psnr_db"] = measured.pop("PSNR_flat")
        of_what = {"PSNR_pixels": "", "PSNR_embeddings": "embeddings_"}
        ratios |= {f"{caption}_{of_what[key]}psnr_db": ratio for key, ratio in measured.items()}
        columns |= {
            name if name in ("original", "masked") else f"{caption}, {name}": images
            for name, images in evaluator.columns_.items()
        }
    path = write_result("mim_figure4", {"mask_ratio": args.mask_ratio, "images": args.images} | ratios)
    save_figure(RESULTS / f"{path.stem}.png", columns)


if __name__ == "__main__":
    main()
