"""What an assembler has learned, and its JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from implantdet.assembly.completion import ThirdRegression
from implantdet.assembly.geometry import Array
from implantdet.assembly.likelihood import ImplantModel, Pattern, StudentT
from implantdet.assembly.ranking import Calibration
from implantdet.data.idd import read_json, write_json

FORMAT, VERSION = "implantdet part assembler", 2


@dataclass(frozen=True)
class AssemblerState:
    """Everything learned.

    Attributes:
        model: likelihood of sets of thirds.
        regressions: (thirds that are there, missing third) → its prediction.
        part_coefficients: [4, 3] by slot: what ``calibrating.part_features`` weigh in the cost of leaving a part
            unexplained, in nats.
        examples: known implants of every product line, title → axis → value → count.
        miss_rates: [4] share of parts that are not detected.
        min_scores: [classes] adaptive threshold of every category.
        typical_best: best score of an ordinary image.
        whole_weights: [2] weight of whole-implant boxes, without and with all three thirds.
        score_coefficients: of implant scores; None before calibration.
        calibration: of systems and product lines.
    """

    model: ImplantModel
    regressions: Mapping[tuple[Pattern, int], ThirdRegression]
    part_coefficients: Array
    examples: Mapping[str, Mapping[str, Mapping[str, float]]]
    miss_rates: Array
    min_scores: Array
    typical_best: float = 1.0
    whole_weights: Array = field(default_factory=lambda: np.full(2, 0.5))
    score_coefficients: Array | None = None
    calibration: Calibration = field(default_factory=Calibration)


def save_state(path: str | Path, state: AssemblerState, thing_classes: Sequence[str]) -> None:
    """Write a JSON file, under a temporary name until it is whole."""
    model, calibration = state.model, state.calibration
    content = {
        "format": FORMAT,
        "version": VERSION,
        "thing_classes": list(thing_classes),
        "aspects": model.aspects.tolist(),
        "tilt_std": model.tilt_std,
        **{key: [d.mean.tolist(), d.precision.tolist()] for key, d in _distributions(model).items()},
        "regressions": [
            [list(p), missing, r.coefficients.tolist(), r.intercept.tolist(), r.std.tolist()]
            for (p, missing), r in state.regressions.items()
        ],
        "part_coefficients": state.part_coefficients.tolist(),
        "examples": state.examples,
        "miss_rates": state.miss_rates.tolist(),
        "min_scores": state.min_scores.tolist(),
        "typical_best": state.typical_best,
        "whole_weights": state.whole_weights.tolist(),
        "score_coefficients": None if state.score_coefficients is None else state.score_coefficients.tolist(),
        "temperature": calibration.temperature,
        "confusions": {axis: matrix.tolist() for axis, matrix in calibration.confusions.items()},
        "system_quantile": calibration.system_quantile,
        "line_quantile": calibration.line_quantile,
        "min_fit": calibration.min_fit if np.isfinite(calibration.min_fit) else None,
    }
    write_json(Path(path), content)


def load_state(path: str | Path, thing_classes: Sequence[str]) -> AssemblerState:
    """Read what ``save_state`` wrote.

    Raises:
        ValueError: the file is none of ours, of another version, or of a detector with other classes.
    """
    content = read_json(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected the state of a part assembler, as `PartAssembler.save` writes it")
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: version {content.get('version')!r}, expected {VERSION}; fit the assembler again")
    if content.get("thing_classes") != list(thing_classes):
        raise ValueError(f"{path}: was learned for other classes than the {len(thing_classes)} of this detector")
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__} {error}; fit the assembler again") from error


def _parse(content: dict[str, Any]) -> AssemblerState:
    pairs, triple, wholes = (StudentT(*map(_array, content[key])) for key in ("pairs", "triple", "wholes"))
    model = ImplantModel(_array(content["aspects"]), pairs, triple, wholes, float(content["tilt_std"]))
    regressions = {
        (tuple(p), missing): ThirdRegression(_array(c), _array(i), _array(s))
        for p, missing, c, i, s in content["regressions"]
    }
    coefficients = content["score_coefficients"]
    calibration = Calibration(
        float(content["temperature"]),
        {axis: _array(matrix) for axis, matrix in content["confusions"].items()},
        content["system_quantile"],
        content["line_quantile"],
        -np.inf if content["min_fit"] is None else float(content["min_fit"]),
    )
    return AssemblerState(
        model,
        regressions,
        _array(content["part_coefficients"]),
        content["examples"],
        _array(content["miss_rates"]),
        _array(content["min_scores"]),
        float(content["typical_best"]),
        _array(content["whole_weights"]),
        None if coefficients is None else _array(coefficients),
        calibration,
    )


def _distributions(model: ImplantModel) -> dict[str, StudentT]:
    return {"pairs": model.pairs, "triple": model.triple, "wholes": model.wholes}


def _array(values: Any) -> Array:
    array = np.array(values, float)
    if not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers; found {values!r}")
    return array
