"""How far a ranking can be trusted: confusions, temperature, conformal sets and the limit of the unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from implantdet.assembly.geometry import Array
from implantdet.assembly.line_table import LineTable
from implantdet.assembly.ranking import Calibration, Ranker, Readings
from implantdet.taxonomy import SYSTEM

CONFUSION_WEIGHT = 10.0  # an axis counts as read right until about so many readings of a value say otherwise
UNKNOWN_SHARE = 0.05  # of known implants that may be called unknown
LOG_TEMPERATURES = (-1.5, 3.0)
FOLDS = 5  # of patients; each is judged by what the others taught


class Sample(NamedTuple):
    """What was read of a validation implant, and what is true of it.

    Attributes:
        readings: axis → value → share.
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
    of_system, of_line, fits = [], [], []
    for fold in range(FOLDS):
        held_out = set(groups[fold::FOLDS])
        judged = [sample for sample in samples if sample.group in held_out]
        others = [sample for sample in samples if sample.group not in held_out]
        if not judged:
            continue
        # Readings look better to what was learned from them: quantiles from there would promise too much.
        ranker = Ranker(table, _teach(others, table) if others else taught)
        readings = [sample.readings for sample in judged]
        posteriors = ranker.posterior(ranker.likelihoods(readings))
        of_system += (1 - (posteriors * _own(judged, table)).sum(axis=1)).tolist()
        of_line += [
            1 - posterior[table.titles.index(sample.line)]
            for posterior, sample in zip(posteriors.tolist(), judged, strict=True)
            if sample.line in table.titles
        ]
        fits += ranker.fit(readings).tolist()
    return replace(
        taught,
        system_quantile=conformal_quantile(np.array(of_system), coverage),
        line_quantile=conformal_quantile(np.array(of_line), coverage),
        min_fit=-np.inf if np.isnan(fits).all() else float(np.nanquantile(fits, UNKNOWN_SHARE)),
    )


def _teach(samples: Sequence[Sample], table: LineTable) -> Calibration:
    """Confusions and temperature."""
    ranker = Ranker(table, Calibration(confusions=_confusions(samples, table)))
    likelihoods = ranker.likelihoods([sample.readings for sample in samples])
    return replace(ranker.calibration, temperature=_temperature(ranker, likelihoods, _own(samples, table)))


def _own(samples: Sequence[Sample], table: LineTable) -> Array:
    """[K, L] 1 for the lines of a sample's true system."""
    return np.array([[float(system == sample.system) for system in table.systems] for sample in samples])


def conformal_quantile(scores: Array, coverage: float) -> float | None:
    """The ⌈(n + 1) · coverage⌉-th smallest of n scores (split conformal prediction); None if n is too small."""
    position = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[position - 1]) if position <= len(scores) else None


def _temperature(ranker: Ranker, likelihoods: Array, own: Array) -> float:
    """The temperature under which the true systems are most probable."""

    def loss(log_temperature: float) -> float:
        scaled = Ranker(ranker.table, replace(ranker.calibration, temperature=float(np.exp(log_temperature))))
        true = (scaled.posterior(likelihoods) * own).sum(axis=1)
        return -float(np.log(np.maximum(true, 1e-12)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded").x))


def _confusions(samples: Sequence[Sample], table: LineTable) -> dict[str, Array]:
    counts = {axis: CONFUSION_WEIGHT * np.eye(len(values)) for axis, values in table.values.items()}
    for sample in samples:
        for axis, truth in {**sample.values, SYSTEM: sample.system}.items():
            if axis in sample.readings:
                names = table.values[axis]
                read = max(sample.readings[axis].items(), key=lambda item: item[1])[0]
                counts[axis][names.index(truth), names.index(read)] += 1
    return {axis: count / count.sum(axis=1, keepdims=True) for axis, count in counts.items()}
