"""What an assembler has learned, and its JSON file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from implantdet.assembly.completion import COMPLETIONS, ThirdRegression
from implantdet.assembly.geometry import Array
from implantdet.assembly.likelihood import ImplantModel, Pattern, StudentT
from implantdet.assembly.ranking import Calibration, Quantiles, Scaling
from implantdet.data.idd import read_json, write_json
from implantdet.taxonomy import SYSTEM

FORMAT, VERSION = "implantdet part assembler", 5
AGAIN = (
    "fit the assembler again: without this file, `python train_net.py --resume` with the training's config and "
    "OUTPUT_DIR, and a validation set in DATASETS.TEST, does"
)


@dataclass(frozen=True)
class AssemblerState:
    """Everything learned.

    Attributes:
        model: likelihood of sets of thirds.
        regressions: (thirds that are there, or the whole implant; missing third) → its prediction.
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


def save_state(
    path: str | Path, state: AssemblerState, thing_classes: Sequence[str], values: Mapping[str, Sequence[str]]
) -> None:
    """Write a JSON file, under a temporary name until it is whole.

    Args:
        path: of the file.
        state: what was learned.
        thing_classes: of the detector.
        values: axis → its values, in the order of the scalings' offsets.
    """
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
        "biases": calibration.biases,
        "scalings": {
            axis: [scaling.slope, dict(zip(values[axis], _nullable(scaling.offsets), strict=True))]
            for axis, scaling in calibration.scalings.items()
        },
        "system_quantiles": [calibration.system_quantiles.of_all, calibration.system_quantiles.of_system],
        "line_quantile": calibration.line_quantile,
        "min_fit": calibration.min_fit if np.isfinite(calibration.min_fit) else None,
    }
    write_json(Path(path), content)


def read_classes(path: str | Path) -> tuple[str, ...]:
    """Names of the classes of the detector that an assembler was fitted for.

    Raises:
        ValueError: the file is none of ours, of another version, or damaged.
    """
    classes = _read(path).get("thing_classes")
    if not isinstance(classes, list):
        raise ValueError(f"{path}: damaged: no list 'thing_classes'; {AGAIN}")
    return tuple(map(str, classes))


def load_state(path: str | Path, thing_classes: Sequence[str], values: Mapping[str, Sequence[str]]) -> AssemblerState:
    """Read what ``save_state`` wrote.

    Args:
        path: of the file.
        thing_classes: of the detector.
        values: axis → its values today; the file may lack new ones.

    Raises:
        ValueError: the file is none of ours, of another version, of a detector with other classes, or has values that
            are none today.
    """
    content = _read(path)
    if content.get("thing_classes") != list(thing_classes):
        raise ValueError(f"{path}: was learned for other classes than the {len(thing_classes)} of this detector")
    try:
        state, names = _parse(content)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {type(error).__name__} {error}; {AGAIN}") from error
    try:
        return of_today(state, thing_classes, names, values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def of_today(
    state: AssemblerState,
    thing_classes: Sequence[str],
    names: Mapping[str, Sequence[str]],
    values: Mapping[str, Sequence[str]],
) -> AssemblerState:
    """What was learned when every axis had the values ``names``, for ``values``; the arguments as for ``load_state``.

    Raises:
        ValueError: some of the names are no values today.
    """
    known = state.calibration.scalings
    if lost := [f"{axis}.{name}" for axis in known for name in names[axis] if name not in values.get(axis, ())]:
        raise ValueError(
            f"came with {', '.join(lost)}, which the taxonomy lacks; expected all values of that time, and "
            "new ones at most. Put them back, or fit the assembler again"
        )
    scalings = {}
    for axis, scaling in known.items():
        categories = values[axis] if axis == SYSTEM else [f"{axis}.{value}" for value in values[axis]]
        can_be_read = np.array([category in thing_classes for category in categories])
        scalings[axis] = _of_today(scaling, names[axis], values[axis], can_be_read)
    return replace(state, calibration=replace(state.calibration, scalings=scalings))


def _read(path: str | Path) -> dict[str, Any]:
    content = read_json(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected the state of a part assembler, as `PartAssembler.save` writes it")
    if content.get("version") != VERSION:
        raise ValueError(f"{path}: version {content.get('version')!r}, expected {VERSION}; {AGAIN}")
    return content


def _of_today(scaling: Scaling, names: Sequence[str], today: Sequence[str], can_be_read: NDArray[np.bool_]) -> Scaling:
    """The scaling of today's values.

    New ones that the detector has a class for have the mean offset. Without a class, nothing that is read may speak
    for or against them.
    """
    offsets = np.where(can_be_read, np.nanmean(scaling.offsets), np.nan)
    offsets[[today.index(name) for name in names]] = scaling.offsets
    return replace(scaling, offsets=offsets)


def _parse(content: dict[str, Any]) -> tuple[AssemblerState, dict[str, list[str]]]:
    """What was learned, and the names of the values of every scaling."""
    pairs, triple, wholes = (
        StudentT(_array(content[key][0], *shape), _array(content[key][1], *shape, shape[-1]))
        for key, shape in (("pairs", (3, 4)), ("triple", (1, 8)), ("wholes", (7, 2)))
    )
    aspects = _positive(content, "aspects", 3)
    model = ImplantModel(aspects, pairs, triple, wholes, float(_positive(content, "tilt_std")))
    regressions = {
        (tuple(p), missing): ThirdRegression(_array(c, 4, 4 if len(p) > 1 else 1), _array(i, 4), _array(s, 2))
        for p, missing, c, i, s in content["regressions"]
    }
    if lacking := [key for key in COMPLETIONS if key not in regressions]:
        raise ValueError(f"no regressions of {lacking}")
    coefficients = content["score_coefficients"]
    names = {axis: list(offsets) for axis, (_, offsets) in content["scalings"].items()}
    scalings = {
        axis: Scaling(float(_array(slope)), _offsets(offsets.values()))
        for axis, (slope, offsets) in content["scalings"].items()
    }
    calibration = Calibration(
        float(_positive(content, "temperature")),
        _numbers(content["biases"]),
        scalings,
        Quantiles(_optional(content["system_quantiles"][0]), _numbers(content["system_quantiles"][1])),
        _optional(content["line_quantile"]),
        -np.inf if content["min_fit"] is None else float(_array(content["min_fit"])),
    )
    state = AssemblerState(
        model,
        regressions,
        _array(content["part_coefficients"], 4, 3),
        {title: {axis: _numbers(said) for axis, said in of.items()} for title, of in content["examples"].items()},
        _positive(content, "miss_rates", 4),
        _array(content["min_scores"], len(content["thing_classes"])),
        float(_positive(content, "typical_best")),
        _array(content["whole_weights"], 2),
        None if coefficients is None else _array(coefficients, 13),
        calibration,
    )
    return state, names


def _distributions(model: ImplantModel) -> dict[str, StudentT]:
    return {"pairs": model.pairs, "triple": model.triple, "wholes": model.wholes}


def _offsets(values: Iterable[float | None]) -> Array:
    return np.array([np.nan if value is None else float(_array(value)) for value in values])


def _nullable(values: Array) -> list[float | None]:
    """JSON has no NaN."""
    return [None if np.isnan(value) else float(value) for value in values]


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(_array(value)) for name, value in values.items()}


def _optional(value: Any) -> float | None:
    return None if value is None else float(_array(value))


def _positive(content: dict[str, Any], key: str, *shape: int) -> Array:
    array = _array(content[key], *shape)
    if not (array > 0).all():
        raise ValueError(f"{key}: expected numbers above 0; found {content[key]!r}")
    return array


def _array(values: Any, *shape: int) -> Array:
    array = np.array(values, float)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"expected finite numbers of shape {shape}; found {values!r}")
    return array
