"""How well systems and product lines were ranked, and whether conformal sets hold what they promise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from implantdet.assembly.known import KnownImplant
from implantdet.evaluation.implant_matching import CONFIDENT, ImageOutcome, top_system
from implantdet.structures import Candidate, Implant

BACKGROUND = "background"
Matched = Sequence[tuple[Implant, KnownImplant]]


def ranking_metrics(matched: Matched) -> dict[str, dict[str, Any]]:
    """Top-1 and top-3 accuracy, and the conformal sets, of systems and product lines.

    Args:
        matched: found implants and what they are; those of which the system (or line) is not annotated do not count.

    Returns:
        ``systems`` and ``lines``, each with ``num_implants``; ``top1`` and ``top3``, where ties count against us;
        ``coverage`` of the conformal sets, ``coverage_of`` each true name, ``mean_size`` of the sets; ``unknown``, the
        share that was called unknown. Shares in [0, 1]; NaN of none, or without calibration.
    """
    ranked = [(implant.ranking, truth) for implant, truth in matched if implant.ranking]
    return {
        "systems": _measure([(r.systems, r.system_set, r.unknown, t.system) for r, t in ranked if t.system]),
        "lines": _measure([(r.lines, r.line_set, r.unknown, t.product_line) for r, t in ranked if t.product_line]),
    }


def _measure(
    cases: Sequence[tuple[Sequence[Candidate], tuple[str, ...] | None, bool | None, str]],
) -> dict[str, Any]:
    places = [place(candidates, truth) for candidates, _, _, truth in cases]
    sets = [(names, truth) for _, names, _, truth in cases if names is not None]
    held: dict[str, list[bool]] = {}
    for names, truth in sets:
        held.setdefault(truth, []).append(truth in names)
    return {
        "num_implants": len(cases),
        "top1": _mean([found <= 1 for found in places]),
        "top3": _mean([found <= 3 for found in places]),
        "coverage": _mean([truth in names for names, truth in sets]),
        "coverage_of": {truth: _mean(each) for truth, each in sorted(held.items())},
        "mean_size": _mean([len(names) for names, _ in sets]),
        "unknown": _mean([bool(unknown) for _, _, unknown, _ in cases]),
    }


def place(candidates: Sequence[Candidate], name: str) -> float:
    """Place of a candidate, from 1, with all that tie with it before it; infinite if it is not in the ranking."""
    rank = next((candidate.rank for candidate in candidates if candidate.name == name), None)
    return float("inf") if rank is None else sum(candidate.rank <= rank for candidate in candidates)


def system_confusion(outcomes: Iterable[ImageOutcome], systems: Sequence[str]) -> dict[str, Any]:
    """Which system was taken for which; implants with a score from 0.5 on count as found.

    Args:
        outcomes: of all images. True implants without an annotated system do not count.
        systems: rows and columns.

    Returns:
        ``labels``, with ``background`` last, and ``confusion``: true systems down, found ones across.
    """
    cases: list[tuple[str, str]] = []  # true, found
    for outcome in outcomes:
        for implant, known in outcome.matched:
            found = top_system(implant) if implant.score >= CONFIDENT else None
            cases.append((known.system or "", found or BACKGROUND))
        cases += [(known.system or "", BACKGROUND) for known in outcome.missed]
        cases += [(BACKGROUND, top_system(implant) or BACKGROUND) for implant in outcome.false]
    cases = [case for case in cases if case[0]]
    labels = [*systems, BACKGROUND]
    if not cases:
        return {"labels": labels, "confusion": np.zeros((len(labels),) * 2, int).tolist()}
    matrix = confusion_matrix(*zip(*cases, strict=True), labels=labels)
    return {"labels": labels, "confusion": matrix.tolist()}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
