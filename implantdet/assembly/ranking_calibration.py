"""How far a ranking can be trusted: scalings, temperature, biases, conformal sets and the limit of the unknown."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from implantdet.assembly.geometry import Array, Indices
from implantdet.assembly.line_table import LineTable
from implantdet.assembly.ranking import UNREPORTED, Calibration, Quantiles, Ranker, Readings, Scaling, strangeness
from implantdet.taxonomy import SYSTEM

logger = logging.getLogger(__name__)

SURE_READINGS = 10.0  # of every value, all right: its scores are believed until about so many say otherwise
UNKNOWN_SHARE = 0.05  # of known implants that may be called unknown
LOG_TEMPERATURES = (0.0, 3.0)  # axes err together, never in opposite ways: likelihoods are too sure, if anything
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
    group: str


class Judged(NamedTuple):
    """How strange something looked to what the other groups taught.

    Attributes:
        score: the stranger, the higher.
        group: as of ``Sample``.
    """

    score: float
    group: str


def calibrate(
    samples: Sequence[Sample], table: LineTable, coverage: float, readable: Mapping[str, Collection[str]]
) -> Calibration:
    """Learn from validation implants.

    Args:
        samples: implants that were found.
        table: learned on the training set.
        coverage: share of conformal sets that should hold the truth, in (0, 1).
        readable: axis → the values that the detector can say.

    Returns:
        The default calibration if there are no samples.
    """
    if not samples:
        return Calibration()
    taught = _teach(samples, table, readable)
    groups = sorted({sample.group for sample in samples})
    of_system: dict[str, list[Judged]] = {}
    of_line: list[Judged] = []
    misfits: list[Judged] = []
    for fold in range(FOLDS):
        held_out = set(groups[fold::FOLDS])
        judged = [sample for sample in samples if sample.group in held_out]
        others = [sample for sample in samples if sample.group not in held_out]
        if not judged:
            continue
        # Readings look better to what was learned from them: quantiles from there would promise too much.
        ranker = Ranker(table, _teach(others, table, readable) if others else taught)
        readings = [sample.readings for sample in judged]
        lines = ranker.posterior(ranker.likelihoods(readings))
        strange_systems = strangeness(lines @ ranker.membership).tolist()
        for sample, systems, titles in zip(judged, strange_systems, strangeness(lines).tolist(), strict=True):
            strange = systems[table.values[SYSTEM].index(sample.system)]
            of_system.setdefault(sample.system, []).append(Judged(strange, sample.group))
            if sample.line in table.titles:
                of_line.append(Judged(titles[table.titles.index(sample.line)], sample.group))
        for sample, fit in zip(judged, ranker.fit(readings).tolist(), strict=True):
            if not math.isnan(fit):
                misfits.append(Judged(-fit, sample.group))
    largest = conformal_quantile(misfits, 1 - UNKNOWN_SHARE)
    system_quantiles = conformal_quantiles(of_system, coverage)
    if system_quantiles.of_all is None or largest is None:
        logger.warning(
            "Implants of %d patients (or sources) were found for the calibration: conformal sets of %g %% need %d, and "
            "'unknown' needs %d. Expected larger validation folds.",
            *(len(groups), 100 * coverage, groups_needed(coverage), groups_needed(1 - UNKNOWN_SHARE)),
        )
    return replace(
        taught,
        system_quantiles=system_quantiles,
        line_quantile=conformal_quantile(of_line, coverage),
        min_fit=-np.inf if largest is None else -largest,
    )


def _teach(samples: Sequence[Sample], table: LineTable, readable: Mapping[str, Collection[str]]) -> Calibration:
    """Scalings; then temperature and biases, under which the true systems are most probable."""
    taught = Calibration(scalings=_scalings(samples, table, readable))
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


def conformal_quantiles(of_system: Mapping[str, Sequence[Judged]], coverage: float) -> Quantiles:
    """System by system (Mondrian conformal prediction), of how strange the truth looked.

    Systems with too few groups have no quantile of their own.
    """
    own = {system: conformal_quantile(mine, coverage) for system, mine in of_system.items()}
    return Quantiles(
        conformal_quantile([one for mine in of_system.values() for one in mine], coverage),
        {system: quantile for system, quantile in own.items() if quantile is not None},
    )


def conformal_quantile(judged: Sequence[Judged], coverage: float) -> float | None:
    """The score that one of a new group does not exceed with this probability (Lee et al., arXiv:2306.06342).

    Implants of one patient look alike, so that not they but patients are exchangeable: each of G groups counts as much,
    its implants share that, and a further share stands at infinity for the group to come. Of single implants it is the
    ⌈(G + 1) · coverage⌉-th smallest score of split conformal prediction. None where the groups are too few.
    """
    sizes = Counter(one.group for one in judged)
    needed = coverage * (len(sizes) + 1) - 1e-9  # sums of shares are not exact
    held = 0.0
    for score, group in sorted(judged):
        held += 1 / sizes[group]
        if held >= needed:
            return score
    return None


def groups_needed(coverage: float) -> int:
    """The fewest groups of which ``conformal_quantile`` has one."""
    return math.ceil(round(coverage / (1 - coverage), 6))


def _scalings(
    samples: Sequence[Sample], table: LineTable, readable: Mapping[str, Collection[str]]
) -> dict[str, Scaling]:
    """Axis → scaling, of the axes that were read where they could be assessed."""
    told: dict[str, list[tuple[dict[str, float], str]]] = {}
    for sample in samples:
        for axis, truth in {**sample.values, SYSTEM: sample.system}.items():
            if axis in sample.readings and truth in readable[axis]:
                told.setdefault(axis, []).append((sample.readings[axis], truth))
    scalings = {}
    for axis, pairs in told.items():
        names = [name for name in table.values[axis] if name in readable[axis]]
        scores = np.array([[said.get(name, 0.0) for name in names] for said, _ in pairs])
        scaling = vector_scaling(scores, np.array([names.index(truth) for _, truth in pairs]))
        offsets = dict(zip(names, scaling.offsets.tolist(), strict=True))
        scalings[axis] = Scaling(scaling.slope, np.array([offsets.get(name, np.nan) for name in table.values[axis]]))
    return scalings


def vector_scaling(scores: Array, truth: Indices) -> Scaling:
    """The scaling under which the true values are most probable, each weighed by how often it is true.

    Args:
        scores: [K, V] of every value of an axis; 0 where it was not reported.
        truth: [K] index of the true value.
    """
    count = scores.shape[1]
    logs = np.log(np.maximum(np.concatenate([scores, np.eye(count)]), UNREPORTED))
    truth = np.concatenate([truth, np.arange(count)])
    weights = np.concatenate([np.ones(len(scores)), np.full(count, SURE_READINGS)])
    target = np.eye(count)[truth]

    def loss(parameters: Array) -> tuple[float, Array]:
        posterior = log_softmax(parameters[0] * logs + parameters[1:], axis=1)
        excess = weights[:, None] * (np.exp(posterior) - target)
        off = parameters - start  # a weak pull: without it, scores that are always right have no largest slope
        gradient = np.concatenate([[(excess * logs).sum()], excess.sum(axis=0)])
        return float((off**2).sum() / 2 - (weights * posterior[np.arange(len(truth)), truth]).sum()), gradient + off

    start = np.concatenate([[1.0], np.zeros(count)])
    slope, *offsets = minimize(loss, start, jac=True).x
    # Posteriors hold how often a value is true. The lines' prior knows that already: likelihoods are asked for.
    return Scaling(float(slope), np.array(offsets) - np.log(weights @ target / weights.sum()))
