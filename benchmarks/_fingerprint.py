"""Whether two measurements were made with one config."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from detectron2.config import get_cfg

from implantdet.config import add_implantdet_config
from implantdet.engine.merging import merge

ROOT = Path(__file__).parents[1]


def fingerprint(config: str, options: Iterable[object] = ()) -> str:
    """Twelve hexadecimal digits that change with the value of any key that counts.

    Args:
        config: config file, from the repository's root.
        options: KEY, VALUE, … on top of it, best without paths and seeds.
    """
    cfg = get_cfg()
    add_implantdet_config(cfg)
    merge(cfg, str(ROOT / config), [str(option) for option in options])
    del cfg.SOLVER["CHECKPOINT_EPOCHS"]  # how often a training is saved changes nothing of what comes out
    # Nor does when the guard would have stopped it, nor what the exact assembly does not read: as in the first runs.
    cfg.MODEL.MIM.GUARD_FRACTION = 0.1
    if cfg.ASSEMBLY.METHOD != "kmeans_paper":
        cfg.ASSEMBLY.MERGE_DISTANCE = 0.25
    return hashlib.sha256(cfg.dump().encode()).hexdigest()[:12]
