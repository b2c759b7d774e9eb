"""How well systems and product lines were ranked, and whether conformal sets hold what they promise."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix

from implantdet.assembly.known import KnownImplant
from implantdet.evaluation.implant_matching import CONFIDENT, ImageOutcome, top_system
from implantdet.structures import Candidate, Implant

BACKGROUND = "background"
Matched = Sequence[tuple[Implant, KnownImplant]]


def ranking_metrics(matched: Matched, groups: Sequence[Hashable] | None = None) -> dict[str, dict[str, Any]]:
    """Top-1 and top-3 accuracy, and the conformal sets, of systems and product lines.

    Args:
        matched: found implants and what they are; those of which the system (or line) is not annotated do not count.
        groups: of each of them, such as its patient; None: each is one of its own.

    Returns:
        ``systems`` and ``lines``, each with ``num_implants``; ``top1`` and ``top3``, where ties count against us;
        ``coverage`` of the conformal sets and ``coverage_of`` each true name, in which groups count alike, as they do
        in what the sets promise; ``mean_size`` of the sets; ``unknown``, the share that was called unknown, of those
        that could be judged. Shares in [0, 1]; NaN of none, or without calibration.
    """
    of_each = range(len(matched)) if groups is None else groups
    ranked = [(i.ranking, truth, group) for (i, truth), group in zip(matched, of_each, strict=True) if i.ranking]
    return {
        "systems": _measure([_Case(r.systems, r.system_set, r.unknown, t.system, g) for r, t, g in ranked if t.system]),
        "lines": _measure(
            [_Case(r.lines, r.line_set, r.unknown, t.product_line, g) for r, t, g in ranked if t.product_line]
        ),
    }


class _Case(NamedTuple):
    candidates: Sequence[Candidate]
    names: tuple[str, ...] | None
    unknown: bool | None
    truth: str
    group: Hashable


def _measure(cases: Sequence[_Case]) -> dict[str, Any]:
    places = [place(case.candidates, case.truth) for case in cases]
    told = [case for case in cases if case.names is not None]
    of_name: dict[str, list[_Case]] = {}
    for case in told:
        of_name.setdefault(case.truth, []).append(case)
    return {
        "num_implants": len(cases),
        "top1": _mean([found <= 1 for found in places]),
        "top3": _mean([found <= 3 for found in places]),
        "coverage": _coverage(told),
        "coverage_of": {truth: _coverage(each) for truth, each in sorted(of_name.items())},
        "mean_size": _mean([len(case.names or ()) for case in told]),
        "unknown": _mean([case.unknown for case in cases if case.unknown is not None]),
    }


def _coverage(cases: Sequence[_Case]) -> float:
    """How often the set of one of a group drawn by chance holds the truth."""
    held: dict[Hashable, list[bool]] = {}
    for case in cases:
        held.setdefault(case.group, []).append(case.truth in (case.names or ()))
    return _mean([_mean(each) for each in held.values()])


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
