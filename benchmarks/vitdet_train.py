"""train_net.py, with Detectron2's own ViTDet as one more backbone: ``MODEL.BACKBONE.NAME vitdet``."""

from __future__ import annotations

import runpy
from pathlib import Path

import _vitdet  # noqa: F401  registers the backbone

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "train_net.py"), run_name="__main__")
