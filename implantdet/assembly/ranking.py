"""Which system, and which product line: probabilities with the evidence for and against each.

Letters: K implants, A axes, L product lines, S systems, V values of all axes. Axes count as independent given the
line; an axis that was not read, or could not be, is NaN and left out, which is what missing means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from implantdet.assembly.design_fit import design_fit
from implantdet.assembly.geometry import Array, Indices
from implantdet.assembly.line_table import LineTable
from implantdet.structures import Candidate, Evidence, Part, Ranking
from implantdet.taxonomy import SYSTEM

TIE = 1e-6  # probabilities that differ by a smaller share of themselves have the same rank
TOLD = 0.05  # evidence is listed for product lines that are at least this probable
UNREPORTED = 0.02  # score of a value that the detector did not report, which is below its threshold

Readings = dict[str, dict[str, float]]  # axis → value → score


@dataclass(frozen=True)
class Quantiles:
    """How strange a system may be that is in the conformal set.

    One quantile of all would keep its promise on average, and break it for every rare system.

    Attributes:
        of_all: for systems without one of their own; None where there is no conformal set.
        of_system: system → quantile.
    """

    of_all: float | None = None
    of_system: Mapping[str, float] = field(default_factory=dict)

    def of(self, systems: Sequence[str]) -> Array | None:
        """One for each; None where there is no conformal set."""
        if self.of_all is None:
            return None
        return np.array([self.of_system.get(system, self.of_all) for system in systems])


@dataclass(frozen=True)
class Scaling:
    """What the scores of an axis are worth (vector scaling, Guo et al., arXiv:1706.04599).

    That these scores are read is as probable, given a true value, as score^slope · exp(offset) of this value says, up
    to a factor that all values share.

    Attributes:
        slope: 0 of scores that say nothing.
        offsets: [V] nats; NaN of values that the detector cannot say, as it has no class for them or was shown none:
            given these, what is read is as probable as it is on average of the others.
    """

    slope: float
    offsets: Array


@dataclass(frozen=True)
class Calibration:
    """What the validation set teaches.

    Attributes:
        temperature: divides log-likelihoods; above 1 where they were too sure of themselves.
        biases: system → nats by which it is more probable than the likelihoods say; others have 0.
        scalings: axis → what its scores are worth; those of others are taken for probabilities.
        system_quantiles: of the conformal sets of systems.
        line_quantile: of those of product lines; None where there are none.
        min_fit: designs that fit worse are unknown.
    """

    temperature: float = 1.0
    biases: Mapping[str, float] = field(default_factory=dict)
    scalings: Mapping[str, Scaling] = field(default_factory=dict)
    system_quantiles: Quantiles = Quantiles()
    line_quantile: float | None = None
    min_fit: float = -np.inf


def readings_of(parts: Iterable[Part], whole: Part | None) -> Readings:
    """What the parts of an implant say, with the rivals of each reading."""
    found: Readings = {}
    for part in (*parts, *filter(None, (whole,))):
        for reading in (*part.readings, *part.rivals):  # best first
            found.setdefault(reading.axis, {}).setdefault(reading.value, reading.score)
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
    def membership(self) -> Array:
        """[L, S] 1 where a line belongs to a system."""
        names = self.table.values[SYSTEM]
        return np.array([[float(system == name) for name in names] for system in self.table.systems])

    @cached_property
    def axes(self) -> tuple[str, ...]:
        """[A] in the order of the table; ``system`` is one of them."""
        return tuple(self.table.values)

    @cached_property
    def _columns(self) -> dict[tuple[str, str], int]:
        return {item: k for k, item in enumerate((a, v) for a, values in self.table.values.items() for v in values)}

    @cached_property
    def _starts(self) -> Indices:
        """[A] the first column of every axis."""
        return np.cumsum([0, *self._sizes])[:-1]

    @cached_property
    def _side_by_side(self) -> Array:
        """[V, L] likelihood of all values of all axes."""
        return np.concatenate([self.table.likelihood[axis].T for axis in self.axes])

    @cached_property
    def _sizes(self) -> Indices:
        """[A] number of values of every axis."""
        return np.array([len(values) for values in self.table.values.values()])

    @cached_property
    def _scaling(self) -> tuple[Array, Array, NDArray[np.bool_], NDArray[np.bool_]]:
        """[V] slopes, offsets, which values have no class, and of which axes the scores are scaled."""
        scalings = self.calibration.scalings
        offsets = [scalings[a].offsets if a in scalings else np.zeros(len(v)) for a, v in self.table.values.items()]
        slopes = [scalings[axis].slope if axis in scalings else 1.0 for axis in self.axes]
        is_scaled = np.repeat([axis in scalings for axis in self.axes], self._sizes)
        side_by_side = np.concatenate(offsets)
        return np.repeat(slopes, self._sizes), side_by_side, np.isnan(side_by_side), is_scaled

    def _scores(self, readings: Sequence[Readings]) -> Array:
        """[K, V] score of every value of every axis; what those of an axis leave open up to 1 is unread."""
        scores = np.zeros((len(readings), len(self._columns)))
        for row, found in enumerate(readings):
            for axis, said in found.items():
                for value, score in said.items():
                    scores[row, self._columns[axis, value]] = score
        return scores

    def _votes(self, scores: Array) -> Array:
        """[K, V] in proportion to how probable the [K, V] scores of an axis are, given each value, where that is known.

        A common factor changes no ratio of likelihoods.
        """
        slopes, offsets, has_no_class, is_scaled = self._scaling
        likely = np.exp(slopes * np.log(np.maximum(scores, UNREPORTED)) + np.where(has_no_class, -np.inf, offsets))
        likely /= self._sum_of_axis(likely)
        if has_no_class.any():
            likely[:, has_no_class] = 1 / self._sum_of_axis((~has_no_class[None]).astype(float))[:, has_no_class]
        return np.where(is_scaled, likely, scores)

    def _sum_of_axis(self, values: Array) -> Array:
        """[K, V] the sum of all [K, V] values of the same axis."""
        return np.repeat(np.add.reduceat(values, self._starts, axis=1), self._sizes, axis=1)

    def likelihoods(self, readings: Sequence[Readings]) -> Array:
        """[K, A, L] probability of every reading, given the line."""
        return self._likelihoods(readings, self._votes(self._scores(readings)))

    def _likelihoods(self, readings: Sequence[Readings], votes: Array) -> Array:
        read = np.array([[axis in found for axis in self.axes] for found in readings], bool).reshape(-1, len(self.axes))
        probability = np.add.reduceat(votes[:, :, None] * self._side_by_side, self._starts, axis=1)
        # The unread share could be any value.
        unread = np.maximum(0.0, 1 - np.add.reduceat(votes, self._starts, axis=1))
        probability += (unread / self._sizes)[:, :, None]
        probability[~read] = np.nan
        return probability

    def posterior(self, likelihoods: Array) -> Array:
        """[K, L] probability of every line."""
        evidence = np.nansum(np.log(likelihoods), axis=-2) / self.calibration.temperature
        biases = [self.calibration.biases.get(system, 0.0) for system in self.table.systems]
        return np.asarray(softmax(np.log(self.table.prior) + biases + evidence, axis=-1))

    def _beside(self, likelihoods: Array) -> Array:
        """[K, A, L, S] probability of every line of a system, given the system and what is read of the other axes.

        What an axis says of a system is what it says of the lines that it may still be. By the prior alone a system
        that is there with its one unusual line would be told to look wrong in all that is unusual.
        """
        nats = np.nan_to_num(np.log(likelihoods)) / self.calibration.temperature  # an axis that was not read has none
        others = np.log(self.table.prior) + nats.sum(axis=-2, keepdims=True) - nats
        return np.asarray(softmax(np.where(self.membership > 0, others[..., None], -np.inf), axis=-2))

    def fit(self, readings: Sequence[Readings]) -> Array:
        """[K] how well each design fits the lines that are described; NaN if no axis was read, or no line is described.

        The class of a whole-implant detection is not part of the design. Scores count as they are: scalings know the
        designs of known lines alone, and explain away what is strange.
        """
        return self._fit(self._scores(readings))

    def _fit(self, scores: Array) -> Array:
        lines = self.table.is_described
        if not lines.any():
            return np.full(len(scores), np.nan)
        design = np.array([axis != SYSTEM for axis, _ in self._columns])
        counts = [int(n) for axis, n in zip(self.axes, self._sizes, strict=True) if axis != SYSTEM]
        prior = self.table.prior[lines] / self.table.prior[lines].sum()
        likelihood = self._side_by_side[design][:, lines]
        return design_fit(scores[:, design], likelihood, prior, counts)

    def rank(self, readings: Sequence[Readings]) -> list[Ranking]:
        """Of every implant: systems and lines, most probable first, with evidence, conformal sets and fit."""
        if not readings:
            return []
        table, calibration = self.table, self.calibration
        scores = self._scores(readings)
        votes = self._votes(scores)
        likelihoods = self._likelihoods(readings, votes)
        lines = self.posterior(likelihoods)
        systems = lines @ self.membership
        average = likelihoods @ table.prior[:, None]
        # As in the posterior, where a temperature divides them.
        for_system = np.log((self._beside(likelihoods) * likelihoods[..., None]).sum(axis=-2) / average)
        for_line, for_system = (nats / calibration.temperature for nats in (np.log(likelihoods / average), for_system))
        names = table.values[SYSTEM]
        system_sets = conformal_sets(names, systems, calibration.system_quantiles.of(names))
        line_sets = conformal_sets(table.titles, lines, calibration.line_quantile)
        told = list(map(self._told, readings, votes))
        return [
            Ranking(
                systems=ranked_systems,
                lines=ranked_lines,
                system_set=system_set,
                line_set=line_set,
                fit=None if np.isnan(fit) else fit,
                unknown=None if np.isnan(fit) or calibration.min_fit == -np.inf else fit < calibration.min_fit,
            )
            for ranked_systems, ranked_lines, system_set, line_set, fit in zip(
                _ranked(names, systems, told, for_system, 0.0),
                _ranked(table.titles, lines, told, for_line, TOLD),
                system_sets,
                line_sets,
                self._fit(scores).tolist(),
                strict=True,
            )
        ]

    def _told(self, readings: Readings, votes: Array) -> dict[int, tuple[str, str, float]]:
        """Number of the axis → axis, the reading that counts most there by its [V] votes, and its score."""
        told = {}
        for axis, said in readings.items():
            value = max(said, key=lambda value: votes[self._columns[axis, value]])
            told[self.axes.index(axis)] = (axis, value, said[value])
        return told


def strangeness(probabilities: Array) -> Array:
    """[K, n] the nonconformity score of conformal prediction: 0 of the most probable names, else 1 - probability.

    An empty set never holds the truth, so that the most probable names, ties kept, are in every set.
    """
    first = (1 - TIE) * probabilities.max(axis=1, keepdims=True)
    return np.where(probabilities >= first, 0.0, 1 - probabilities)


def conformal_sets(
    names: Sequence[str], probabilities: Array, quantiles: Array | float | None
) -> list[tuple[str, ...] | None]:
    """Of every row of [K, n]: the names that are no stranger than their quantile; None without quantiles."""
    if quantiles is None:
        return [None] * len(probabilities)
    kept = (strangeness(probabilities) <= quantiles).tolist()
    return [tuple([name for name, is_in in zip(names, row, strict=True) if is_in]) for row in kept]


def _ranked(
    names: Sequence[str],
    probabilities: Array,
    told: Sequence[Mapping[int, tuple[str, str, float]]],
    weights: Array,
    least: float,
) -> Iterator[tuple[Candidate, ...]]:
    """Of every implant, the candidates in order, n of them.

    Args:
        names: of the candidates.
        probabilities: [K, n].
        told: of every implant, what ``Ranker._told`` says.
        weights: [K, A, n] log-likelihood against the average candidate; NaN where an axis was not read.
        least: probability from which on the evidence of a candidate is listed.
    """
    columns = weights.transpose(0, 2, 1)
    orders = np.argsort(-probabilities, axis=1, kind="stable").tolist()
    heaviest = np.argsort(-np.abs(columns), axis=2, kind="stable").tolist()  # what is NaN comes last
    rows = zip(orders, probabilities.tolist(), told, columns.tolist(), heaviest, strict=True)
    for order, probability, read, weight, axes in rows:
        candidates: list[Candidate] = []
        for place, index in enumerate(order, start=1):
            mine = probability[index]
            tied = place > 1 and candidates[-1].probability - mine <= TIE * mine
            reasons: tuple[Evidence, ...] = ()
            if mine >= least:
                reasons = tuple([Evidence(*read[axis], weight[index][axis]) for axis in axes[index][: len(read)]])
            candidates.append(Candidate(names[index], mine, candidates[-1].rank if tied else place, reasons))
        yield tuple(candidates)
