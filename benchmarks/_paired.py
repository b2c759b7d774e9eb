"""What one side of a comparison has over the other, when both ran under the same seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from scipy.stats import ttest_rel


def paired_difference(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[str, Any]:
    """Mean difference over what both sides have, and its 95 % interval (Student's t) if there are two pairs or more.

    Args:
        one: run (its seed, or fold and seed) → value.
        other: of the other side.

    Returns:
        ``pairs``, ``mean`` and, with two different differences or more, ``ci95`` (low, high) and ``p``.
    """
    common = sorted(one.keys() & other.keys())
    differences = [one[key] - other[key] for key in common]
    result: dict[str, Any] = {"pairs": len(common), "mean": statistics.mean(differences) if common else None}
    if len(set(differences)) > 1:
        test = ttest_rel([one[key] for key in common], [other[key] for key in common])
        interval = test.confidence_interval(0.95)
        result |= {"ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
    return result
