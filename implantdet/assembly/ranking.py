"""Which system, and which product line: probabilities with the evidence for and against each.

Letters: A axes that were read, L product lines, S systems, V values of an axis. Axes count as independent given the
line; an axis that could not be assessed is left out, which is what missing means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from implantdet.assembly.geometry import Array
from implantdet.assembly.line_table import LineTable
from implantdet.structures import Candidate, Evidence, Part, Ranking
from implantdet.taxonomy import SYSTEM

TIE = 1e-6  # probabilities that differ by a smaller share of themselves have the same rank
TOLD = 0.01  # evidence is listed for candidates that are at least this probable

Readings = dict[str, dict[str, float]]  # axis → value → share; what the shares of an axis leave open is unread


@dataclass(frozen=True)
class Calibration:
    """What the validation set teaches.

    Attributes:
        temperature: divides log-likelihoods; above 1 where they were too sure of themselves.
        confusions: axis → [V, V] probability of reading the column where the row is true.
        system_quantile: systems with a probability of at least 1 minus this are in the conformal set.
        line_quantile: the same for product lines.
        min_fit: implants that fit worse are unknown.
    """

    temperature: float = 1.0
    confusions: Mapping[str, Array] = field(default_factory=dict)
    system_quantile: float | None = None
    line_quantile: float | None = None
    min_fit: float = -np.inf


def readings_of(parts: Iterable[Part], whole: Part | None) -> Readings:
    """What the parts of an implant say; rivals of a reading share its axis in proportion to their scores."""
    found: Readings = {}
    for part in (*parts, *filter(None, (whole,))):
        for reading in (*part.readings, *part.rivals):  # best first
            found.setdefault(reading.axis, {}).setdefault(reading.value, reading.score)
    for votes in found.values():
        total = sum(votes.values())
        if total > 1:
            votes.update({value: vote / total for value, vote in votes.items()})
    return found


@dataclass(frozen=True)
class Ranker:
    """Ranks systems and product lines by Bayes' rule.

    Attributes:
        table: what is known of the lines.
        calibration: how far readings can be trusted.
    """

    table: LineTable
    calibration: Calibration = Calibration()

    @cached_property
    def likelihood(self) -> dict[str, Array]:
        """Axis → [L, V] probability that a value is read, given the line."""
        confusions = self.calibration.confusions
        return {
            axis: table @ confusions[axis] if axis in confusions else table
            for axis, table in self.table.likelihood.items()
        }

    @cached_property
    def membership(self) -> Array:
        """[L, S] 1 where a line belongs to a system."""
        names = self.table.values[SYSTEM]
        return np.array([[float(system == name) for name in names] for system in self.table.systems])

    @cached_property
    def _columns(self) -> dict[str, dict[str, int]]:
        return {axis: {value: k for k, value in enumerate(values)} for axis, values in self.table.values.items()}

    def likelihoods(self, readings: Readings) -> Array:
        """[A, L] probability of every reading, given the line."""
        rows = np.empty((len(readings), len(self.table.titles)))
        for row, (axis, votes) in zip(rows, readings.items(), strict=True):
            likelihood, columns = self.likelihood[axis], self._columns[axis]
            row[:] = max(0.0, 1 - sum(votes.values())) / len(columns)  # the unread share could be any value
            for value, vote in votes.items():
                row += vote * likelihood[:, columns[value]]
        return rows

    def posterior(self, likelihoods: Array) -> Array:
        """[L] probability of every line."""
        logits = np.log(self.table.prior) + np.log(likelihoods).sum(axis=0) / self.calibration.temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def fit(self, readings: Readings, likelihoods: Array) -> float:
        """Log-likelihood of the design under the line that it fits best, against that line's own most usual design."""
        rows = [row for row, axis in enumerate(readings) if axis != SYSTEM]
        usual = np.array([self.likelihood[axis].max(axis=1) for axis in readings if axis != SYSTEM])
        if not rows:
            return 0.0
        return min(0.0, float(np.log(likelihoods[rows] / usual).sum(axis=0).max()))

    def rank(self, readings: Readings) -> Ranking:
        """Systems and product lines, most probable first, with evidence, conformal sets and fit."""
        table, calibration = self.table, self.calibration
        likelihoods = self.likelihoods(readings)
        lines = self.posterior(likelihoods)
        systems = lines @ self.membership
        share = table.prior[:, None] * self.membership
        of_system = likelihoods @ (share / share.sum(axis=0))
        average = likelihoods @ table.prior[:, None]
        fit = self.fit(readings, likelihoods)
        return Ranking(
            systems=_ranked(table.values[SYSTEM], systems, readings, np.log(of_system / average)),
            lines=_ranked(table.titles, lines, readings, np.log(likelihoods / average)),
            system_set=conformal_set(table.values[SYSTEM], systems, calibration.system_quantile),
            line_set=conformal_set(table.titles, lines, calibration.line_quantile),
            fit=fit,
            unknown=fit < calibration.min_fit,
        )


def conformal_set(names: Sequence[str], probabilities: Array, quantile: float | None) -> tuple[str, ...] | None:
    """Names that are probable enough; None without a calibrated quantile."""
    if quantile is None:
        return None
    return tuple(name for name, p in zip(names, probabilities.tolist(), strict=True) if 1 - p <= quantile)


def _ranked(names: Sequence[str], probabilities: Array, readings: Readings, weights: Array) -> tuple[Candidate, ...]:
    """Candidates in order. ``weights`` [A, candidates]: log-likelihood against the average candidate."""
    told = [(axis, *max(votes.items(), key=lambda item: item[1])) for axis, votes in readings.items()]
    candidates: list[Candidate] = []
    for place, index in enumerate(np.argsort(-probabilities, kind="stable").tolist(), start=1):
        probability = float(probabilities[index])
        tied = place > 1 and candidates[-1].probability - probability <= TIE * probability
        reasons: list[Evidence] = []
        if probability >= TOLD:
            reasons = [Evidence(*said, weight) for said, weight in zip(told, weights[:, index].tolist(), strict=True)]
            reasons.sort(key=lambda reason: -abs(reason.weight))
        candidates.append(Candidate(names[index], probability, candidates[-1].rank if tied else place, tuple(reasons)))
    return tuple(candidates)
