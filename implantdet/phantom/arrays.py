"""The array type of the phantom. OpenCV's stubs do not tell float32 from other types, so it carries none."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
