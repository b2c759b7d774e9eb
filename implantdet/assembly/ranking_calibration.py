"""How far a ranking can be trusted: confusions, temperature, biases, conformal sets and the limit of the unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from implantdet.assembly.geometry import Array
from implantdet.assembly.line_table import LineTable
from implantdet.assembly.ranking import Calibration, Quantiles, Ranker, Readings, strangeness
from implantdet.taxonomy import SYSTEM

CONFUSION_WEIGHT = 10.0  # an axis counts as read right until about so many readings of a value say otherwise
UNKNOWN_SHARE = 0.05  # of known implants that may be called unknown
LOG_TEMPERATURES = (-1.5, 3.0)
BIAS_STD = 1.0  # nats; a system of which few implants were seen keeps a bias near 0
FOLDS = 5  # of patients; each is judged by what the others taught


class Sample(NamedTuple):
    """What was read of a validation implant, and what is true of it.

    Attributes:
        readings: axis → value → score.
        values: axis → true value, where it can be assessed.
        system: true system.
        line: title of the true product line, where it is known.
        group: patient, or whatever else makes samples alike.
    """

    readings: Readings
    values: dict[str, str]
    system: str
    line: str | None
    group: str = ""


def calibrate(samples: Sequence[Sample], table: LineTable, coverage: float) -> Calibration:
    """Learn from validation implants.

    Args:
        samples: implants that were found.
        table: learned on the training set.
        coverage: share of conformal sets that should hold the truth, in (0, 1).

    Returns:
        The default calibration if there are no samples.
    """
    if not samples:
        return Calibration()
    taught = _teach(samples, table)
    groups = sorted({sample.group for sample in samples})
    of_system: list[tuple[str, float]] = []
    of_line: list[float] = []
    fits: list[float] = []
    for fold in range(FOLDS):
        held_out = set(groups[fold::FOLDS])
        judged = [sample for sample in samples if sample.group in held_out]
        others = [sample for sample in samples if sample.group not in held_out]
        if not judged:
            continue
        # Readings look better to what was learned from them: quantiles from there would promise too much.
        ranker = Ranker(table, _teach(others, table) if others else taught)
        readings = [sample.readings for sample in judged]
        lines = ranker.posterior(ranker.likelihoods(readings))
        strange_systems = strangeness(lines @ ranker.membership).tolist()
        for sample, systems, titles in zip(judged, strange_systems, strangeness(lines).tolist(), strict=True):
            of_system.append((sample.system, systems[table.values[SYSTEM].index(sample.system)]))
            if sample.line in table.titles:
                of_line.append(titles[table.titles.index(sample.line)])
        fits += ranker.fit(readings).tolist()
    return replace(
        taught,
        system_quantiles=conformal_quantiles(of_system, coverage),
        line_quantile=conformal_quantile(of_line, coverage),
        min_fit=-np.inf if np.isnan(fits).all() else float(np.nanquantile(fits, UNKNOWN_SHARE)),
    )


def _teach(samples: Sequence[Sample], table: LineTable) -> Calibration:
    """Confusions, temperature and biases, under which the true systems are most probable."""
    taught = Calibration(confusions=_confusions(samples, table))
    likelihoods = Ranker(table, taught).likelihoods([sample.readings for sample in samples])
    own = _own(samples, table)
    systems = table.values[SYSTEM]

    def calibration(parameters: Array) -> Calibration:
        biases = dict(zip(systems, parameters[1:].tolist(), strict=True))
        return replace(taught, temperature=float(np.exp(parameters[0])), biases=biases)

    def loss(parameters: Array) -> float:
        true = (Ranker(table, calibration(parameters)).posterior(likelihoods) * own).sum(axis=1)
        return float(((parameters[1:] / BIAS_STD) ** 2).sum() / 2 - np.log(np.maximum(true, 1e-12)).sum())

    bounds = [LOG_TEMPERATURES, *[(None, None)] * len(systems)]
    return calibration(minimize(loss, np.zeros(1 + len(systems)), bounds=bounds).x)


def _own(samples: Sequence[Sample], table: LineTable) -> Array:
    """[K, L] 1 for the lines of a sample's true system."""
    return np.array([[float(system == sample.system) for system in table.systems] for sample in samples])


def conformal_quantiles(scores: Sequence[tuple[str, float]], coverage: float) -> Quantiles:
    """Of pairs of a true system and the strangeness of the truth, system by system (Mondrian conformal prediction).

    Systems with too few have no quantile of their own.
    """
    values: dict[str, list[float]] = {}
    for system, score in scores:
        values.setdefault(system, []).append(score)
    own = {system: conformal_quantile(mine, coverage) for system, mine in values.items()}
    return Quantiles(
        conformal_quantile([score for _, score in scores], coverage),
        {system: quantile for system, quantile in own.items() if quantile is not None},
    )


def conformal_quantile(scores: Sequence[float], coverage: float) -> float | None:
    """The ⌈(n + 1) · coverage⌉-th smallest of n scores (split conformal prediction); None if n is too small."""
    position = math.ceil((len(scores) + 1) * coverage)
    return sorted(scores)[position - 1] if position <= len(scores) else None


def _confusions(samples: Sequence[Sample], table: LineTable) -> dict[str, Array]:
    counts = {axis: CONFUSION_WEIGHT * np.eye(len(values)) for axis, values in table.values.items()}
    for sample in samples:
        for axis, truth in {**sample.values, SYSTEM: sample.system}.items():
            if axis in sample.readings:
                names = table.values[axis]
                read = max(sample.readings[axis].items(), key=lambda item: item[1])[0]
                counts[axis][names.index(truth), names.index(read)] += 1
    return {axis: count / count.sum(axis=1, keepdims=True) for axis, count in counts.items()}
