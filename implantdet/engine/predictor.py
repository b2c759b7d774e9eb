"""Both stages on radiographs that nobody has annotated: what Detectron2's ``DefaultPredictor`` is for one."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.structures import Instances

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.state import read_classes
from implantdet.config import add_implantdet_config
from implantdet.data.checks import MODALITIES
from implantdet.data.images import modality_by_shape
from implantdet.data.problems import DataError
from implantdet.engine.checkpoint import Checkpointer
from implantdet.engine.merging import merge
from implantdet.engine.second_stage import ASSEMBLER
from implantdet.engine.setup import CONFIG, leave_out_tracing_advice
from implantdet.engine.trainer import Trainer
from implantdet.structures import Assembly, Scale

WEIGHTS = "model_final.pth"  # those that the assembler was calibrated with


class ImplantPredictor:
    """A trained detector and its assembler. Needs no dataset, only what the training left.

    Args:
        run_dir: ``OUTPUT_DIR`` of a training that ended with a second stage: ``config.yaml``, ``model_final.pth`` and
            ``assembler.json`` in it.
        device: ``cpu``, ``cuda``, …; None: the GPU if there is one.
        lines: file of product lines that takes the place of the training's ``ASSEMBLY.LINES``.

    Raises:
        DataError: one of the three files is missing.
        ValueError: one of them is damaged, or they do not belong together; or the product lines cannot be read.

    Example:
        >>> predictor = ImplantPredictor("output/idd_mde")  # doctest: +SKIP
        >>> assembly = predictor(read_radiograph("patient.png"), mm_per_pixel=0.1)  # doctest: +SKIP
        >>> [implant.ranking.systems[0].name for implant in assembly.implants]  # doctest: +SKIP
        ['Bicon', 'ITI']
    """

    def __init__(self, run_dir: str | Path, device: str | None = None, lines: str | Path | None = None) -> None:
        for name in (CONFIG, WEIGHTS, ASSEMBLER):
            if not (Path(run_dir) / name).is_file():
                raise DataError(
                    f"{Path(run_dir) / name}: no such file; expected the OUTPUT_DIR of a training that ended with a "
                    f"second stage, with {CONFIG}, {WEIGHTS} and {ASSEMBLER}"
                )
        config, weights, state = (str(Path(run_dir) / name) for name in (CONFIG, WEIGHTS, ASSEMBLER))
        cfg = get_cfg()
        add_implantdet_config(cfg)
        merge(cfg, config, [])
        if lines is not None:
            cfg.ASSEMBLY.LINES = str(lines)
        elif cfg.ASSEMBLY.LINES and not Path(cfg.ASSEMBLY.LINES).is_file():
            raise DataError(
                f"{config}: ASSEMBLY.LINES is {cfg.ASSEMBLY.LINES!r}, and there is no such file here; give the path of "
                "the product lines (--lines)"
            )
        classes = read_classes(state)
        if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            raise ValueError(
                f"{state}: for a detector of {len(classes)} classes, but {config} has "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES}; expected the assembler of this training"
            )
        leave_out_tracing_advice()
        cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._assembler = PartAssembler(cfg, classes).load(state)
        model = Trainer.build_model(cfg)
        Checkpointer(model, ema=model).load(weights)  # averaged weights, loaded last, take the others' place
        cfg.MODEL.MASK_ON = model.roi_heads.mask_on = False  # the assembly does not look at masks
        self._detector = Trainer.build_detector(cfg, model).eval()
        self._mapper = Trainer.build_test_mapper(cfg)
        self._asks_for_modality = cfg.INPUT.PANORAMIC_ZOOM != 1

    def detect(self, levels: np.ndarray, modality: str | None = None) -> Instances:
        """The detections of the first stage, on the CPU; arguments as in ``__call__``."""
        if modality not in (None, *MODALITIES):
            raise ValueError(f"modality: found {modality!r}, expected None or one of {', '.join(MODALITIES)}")
        modality = modality or modality_by_shape(levels.shape)
        if modality is None and self._asks_for_modality:
            self._asks_for_modality = False  # once for all; the record of ``warnings`` is cleared by Detectron2
            warnings.warn(
                "nothing tells what radiographs these are, or some of them: none was enlarged, as panoramic ones were "
                "when this model was trained. If they are panoramic, give the modality (--modality panoramic)",
                stacklevel=3,
            )
        image, _ = self._mapper.augment(levels, modality)
        height, width = levels.shape
        record = {"image": image, "height": height, "width": width, "modality": modality}
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release")  # Detectron2's anchors
            return self._detector([record])[0]["instances"].to("cpu")

    def __call__(self, levels: np.ndarray, mm_per_pixel: Scale | None = None, modality: str | None = None) -> Assembly:
        """The implants of one radiograph, best score first, and the parts that belong to none.

        Args:
            levels: (H, W) grey levels, as ``implantdet.data.images.read_radiograph`` returns them.
            mm_per_pixel: scale, where it is known; where pixels are not square, 2×2.
            modality: ``panoramic`` or ``periapical``, where it is known: ``INPUT.PANORAMIC_ZOOM`` asks for it.
                None: panoramic if it is at least 1.7 times as wide as high.

        Raises:
            ValueError: it is another modality.
        """
        return self._assembler.explain(self.detect(levels, modality), mm_per_pixel)
