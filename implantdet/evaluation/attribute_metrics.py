"""How well each axis of design was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from implantdet.assembly.gather import Meaning
from implantdet.assembly.known import KnownImplant
from implantdet.structures import Implant
from implantdet.taxonomy import SYSTEM

NOT_ASSESSABLE = "not assessable"


def axes_of(meanings: Sequence[Meaning | None]) -> dict[str, list[str]]:
    """Axis → its values, among the detector's classes."""
    axes: dict[str, list[str]] = {}
    for meaning in meanings:
        if meaning is not None and meaning.slot != SYSTEM:
            axes.setdefault(meaning.axis, []).append(meaning.value)
    return axes


def attribute_metrics(
    matched: Sequence[tuple[Implant, KnownImplant]], axes: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Compare what was read of every axis with what is annotated; not to be assessable is a value like any other.

    Args:
        matched: found implants and what they are.
        axes: axis → its values.

    Returns:
        Axis → ``values`` (rows and columns of the confusion), ``confusion`` (true values down, read ones across),
        ``accuracy`` and ``balanced_accuracy`` (mean recall of the values that occur) in [0, 1], NaN of none.
    """
    return {axis: _compare(matched, axis, [*values, NOT_ASSESSABLE]) for axis, values in axes.items()}


def _compare(matched: Sequence[tuple[Implant, KnownImplant]], axis: str, values: list[str]) -> dict[str, Any]:
    truth = [known.values.get(axis, NOT_ASSESSABLE) for _, known in matched]
    read = [implant.readings[axis].value if axis in implant.readings else NOT_ASSESSABLE for implant, _ in matched]
    if not truth:
        empty = [[0] * len(values) for _ in values]
        return {"values": values, "confusion": empty, "accuracy": float("nan"), "balanced_accuracy": float("nan")}
    return {
        "values": values,
        "confusion": confusion_matrix(truth, read, labels=values).tolist(),
        "accuracy": float(accuracy_score(truth, read)),
        # balanced_accuracy_score is this, but warns of values that are read and never true
        "balanced_accuracy": float(recall_score(truth, read, labels=sorted(set(truth)), average="macro")),
    }
