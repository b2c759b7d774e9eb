"""train_net.py with what the benchmarks compare with: the backbone ``vitdet``, the heads of ``_long_tail``."""

from __future__ import annotations

import runpy
from pathlib import Path

import _long_tail  # noqa: F401  registers heads
import _vitdet  # noqa: F401  registers a backbone

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "train_net.py"), run_name="__main__")
