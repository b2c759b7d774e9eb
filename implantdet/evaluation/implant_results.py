"""``implants.json``: assembled implants as a file. ``datasets/README.md`` documents its fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from implantdet.assembly.geometry import reading_order
from implantdet.evaluation.implant_matching import ImageOutcome
from implantdet.structures import Assembly, Candidate, Implant, Part, Ranking, Reading

LISTED = 0.01  # product lines that are less probable are left out


def implants_content(dataset_name: str, outcomes: Iterable[ImageOutcome]) -> dict[str, Any]:
    """The content of ``implants.json``."""
    return {
        "dataset": dataset_name,
        "images": [
            {
                "image_id": outcome.image_id,
                "error": outcome.error,
                "implants": implants_of(outcome.assembly),
            }
            for outcome in outcomes
        ],
    }


def implants_of(assembly: Assembly, min_score: float = 0.0) -> list[dict[str, Any]]:
    """The implants of one radiograph as plain numbers, texts, lists and dicts, with the numbers that pictures show.

    They are numbered as one reads, those below ``min_score``, which a picture has not, after the others.
    """
    order: list[int] = []
    for is_weak in (False, True):  # each by themselves: what nobody sees makes no rows
        mine = [k for k, implant in enumerate(assembly.implants) if (implant.score < min_score) == is_weak]
        order += [mine[place] for place in reading_order([assembly.implants[k].box for k in mine])]
    return [_implant(implant, order.index(k) + 1) for k, implant in enumerate(assembly.implants)]


def _implant(implant: Implant, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "box": implant.box,
        "score": implant.score,
        "axis": implant.axis,
        "tilt": implant.tilt,
        "length": implant.length,
        "width": implant.width,
        "length_mm": implant.length_mm,
        "width_mm": implant.width_mm,
        "parts": [_part(part) for part in implant.parts],
        "whole": implant.whole and _part(implant.whole),
        "ranking": implant.ranking and _ranking(implant.ranking),
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "third": part.third,
        "box": part.box,
        "score": part.score,
        "box_std": part.box_std,
        "readings": _readings(part.readings),
        "rivals": _readings(part.rivals),
    }


def _readings(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    return [{"axis": reading.axis, "value": reading.value, "score": reading.score} for reading in readings]


def _ranking(ranking: Ranking) -> dict[str, Any]:
    return {
        "systems": [_candidate(candidate) for candidate in ranking.systems],
        "lines": [_candidate(candidate) for candidate in ranking.lines if candidate.probability >= LISTED],
        "system_set": ranking.system_set,
        "line_set": ranking.line_set,
        "fit": ranking.fit,
        "unknown": ranking.unknown,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    return candidate._asdict() | {"evidence": [reason._asdict() for reason in candidate.evidence]}
