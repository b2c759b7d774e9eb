"""The second stage: from the detected parts of an image to implants with a ranked system."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from implantdet.assembly import calibrating, state
from implantdet.assembly.build import Outline, outlines
from implantdet.assembly.candidates import (
    WHOLE,
    Parts,
    end_to_end,
    enumerate_candidates,
    gains,
    prefer_axis,
    prefer_known_lengths,
    standing_apart,
)
from implantdet.assembly.clustering import k_means, k_means_paper
from implantdet.assembly.fitting import fit_geometry
from implantdet.assembly.gather import drop_weak, gather, meanings, usable
from implantdet.assembly.geometry import Array, Indices, mean_axis
from implantdet.assembly.known import KnownImplant, known_implants, readings_per_part, scale_of
from implantdet.assembly.line_table import axis_values, build_table, count_examples, seen_values, warn_of_unlisted
from implantdet.assembly.partition import partition
from implantdet.assembly.ranking import Calibration, Ranker, readings_of
from implantdet.assembly.ranking_calibration import calibrate
from implantdet.data.groups import patient_groups
from implantdet.phantom.lines import ProductLine, default_lines, load_lines
from implantdet.structures import SLOTS, Assembly, Implant, Part, Ranking, Scale, checked_scale
from implantdet.taxonomy import Taxonomy, default_taxonomy

METHODS = ("exact", "kmeans", "kmeans_paper")
# Key of ASSEMBLY → lowest and highest value, and whether each of them is allowed.
RANGES = {
    "MISS_RATE": (0.0, 1.0, False, False),
    "FALSE_COST": (0.0, math.inf, False, False),
    "BOX_NOISE": (0.0, math.inf, True, False),
    "MERGE_DISTANCE": (0.0, math.inf, True, False),
    "MERGE_OVERLAP": (0.0, 1.0, False, True),
    "MIN_SCORE": (0.0, 1.0, True, True),
    "SCORE_QUANTILE": (0.0, 1.0, True, True),
    "COVERAGE": (0.0, 1.0, False, False),
}


class PartAssembler(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Groups parts into implants, infers what is missing, and ranks systems.

    ``fit`` learns from the annotations of the training set, ``calibrate`` from predictions on the validation set;
    ``assemble`` needs the first alone. Parameters are checked at once, not in ``fit``: what is wrong in a config shows
    before hours of training. Detections may come in any order. Moving, scaling or turning an image by 90°
    does the same to the implants and changes nothing else, unless parts are so equal that nothing tells them apart.

    Args:
        thing_classes: names of the detector's classes, in their order. Those that are neither parts nor systems of the
            taxonomy are left aside.
        method: ``exact`` (set partition of least cost), ``kmeans`` (as many clusters as the most frequent third has
            parts) or ``kmeans_paper`` (as many clusters as parts, then merged; paper section 3.1).
        miss_rate: share of thirds that a detector misses, until ``calibrate`` has measured it, in (0, 1).
        false_cost: nats that it costs to call a part of full score a false positive, until ``calibrate`` has measured
            how far scores can be trusted, > 0.
        box_noise: standard deviation of detected edges, in sides of their box, until ``calibrate`` has measured it
            across and along the implants, >= 0.
        merge_distance, merge_overlap: thresholds of ``kmeans_paper``, in sides of a part, >= 0, and as a share of the
            box, in (0, 1].
        min_score: threshold of categories that calibration saw too seldom, in [0, 1].
        score_quantile: share of the right detections that the adaptive thresholds may drop, in [0, 1].
        coverage: of the conformal sets, in (0, 1).
        lines: product lines to choose from; None: those that come with the package.
        taxonomy: None: the one that comes with the package.

    Attributes:
        state_: what was learned; None before ``fit``.
        ranker_: that ranks systems by it.
    """

    @configurable
    def __init__(
        self,
        thing_classes: Sequence[str],
        *,
        method: str = "exact",
        miss_rate: float = 0.05,
        false_cost: float = 12.0,
        box_noise: float = 0.03,
        merge_distance: float = 1.25,
        merge_overlap: float = 0.25,
        min_score: float = 0.05,
        score_quantile: float = 0.05,
        coverage: float = 0.9,
        lines: Sequence[ProductLine] | None = None,
        taxonomy: Taxonomy | None = None,
    ) -> None:
        self.thing_classes = tuple(thing_classes)
        self.method = method
        self.miss_rate = miss_rate
        self.false_cost = false_cost
        self.box_noise = box_noise
        self.merge_distance = merge_distance
        self.merge_overlap = merge_overlap
        self.min_score = min_score
        self.score_quantile = score_quantile
        self.coverage = coverage
        self.lines = tuple(default_lines() if lines is None else lines)
        self.taxonomy = taxonomy or default_taxonomy()
        self._derive()
        self.state_: state.AssemblerState | None = None
        self._known_images: list[list[KnownImplant]] = []

    @classmethod
    def from_config(cls, cfg: CfgNode, thing_classes: Sequence[str]) -> dict[str, Any]:
        """Arguments of ``__init__`` from a config."""
        return {
            "thing_classes": thing_classes,
            "method": cfg.ASSEMBLY.METHOD,
            "miss_rate": cfg.ASSEMBLY.MISS_RATE,
            "false_cost": cfg.ASSEMBLY.FALSE_COST,
            "box_noise": cfg.ASSEMBLY.BOX_NOISE,
            "merge_distance": cfg.ASSEMBLY.MERGE_DISTANCE,
            "merge_overlap": cfg.ASSEMBLY.MERGE_OVERLAP,
            "min_score": cfg.ASSEMBLY.MIN_SCORE,
            "score_quantile": cfg.ASSEMBLY.SCORE_QUANTILE,
            "coverage": cfg.ASSEMBLY.COVERAGE,
            "lines": load_lines(cfg.ASSEMBLY.LINES) if cfg.ASSEMBLY.LINES else None,
        }

    def fit(self, dataset_dicts: Sequence[dict[str, Any]]) -> PartAssembler:
        """Learn what implants look like and which design belongs to which product line.

        What scores are worth, thresholds of categories among it, only ``calibrate`` can tell: annotations have none.

        Args:
            dataset_dicts: of the training set; annotations of one implant share ``implant_id``.

        Raises:
            TooFewImplantsError: too few implants have all three thirds annotated.
        """
        images = [known_implants(record, self.meanings) for record in dataset_dicts]
        known = [implant for image in images for implant in image]
        model, regressions = fit_geometry(images, self.box_noise)
        self._known_images = images
        declared = build_table(self.lines, self.taxonomy, {})
        warn_of_unlisted((implant.product_line for implant in known), declared.titles)
        self.state_ = state.AssemblerState(
            model=model,
            regressions=regressions,
            part_coefficients=self._uncalibrated(readings_per_part(known)),
            examples=count_examples(declared, ((i.values, i.system, i.product_line) for i in known)),
            miss_rates=np.full(len(SLOTS), self.miss_rate),
            min_scores=np.full(len(self.thing_classes), self.min_score),
        )
        self._prepare()
        return self

    def calibrate(self, dataset_dicts: Sequence[dict[str, Any]], predictions: Sequence[Instances]) -> PartAssembler:
        """Learn how far the detector can be trusted. Use images that neither it nor ``fit`` was trained on.

        Args:
            dataset_dicts: of the validation set; images of one ``patient_id`` or ``source_id`` are judged together.
            predictions: for each of them, in the same order, what the detector found: ``output["instances"]``, in
                pixels of the original image.
        """
        fitted = self._fitted()
        known = [known_implants(record, self.meanings) for record in dataset_dicts]
        detections = [usable(instances, self.meanings) for instances in predictions]
        min_scores, typical_best = calibrating.score_quantiles(
            zip(detections, known, strict=True), self.meanings, self.score_quantile, self.min_score
        )
        parts = [gather(drop_weak(d, min_scores, typical_best), self.meanings) for d in detections]
        noise = calibrating.box_noise(zip(parts, known, strict=True), self.box_noise)
        if self._known_images:  # else it was read from a file: what the training set showed is kept
            model, regressions = fit_geometry([*self._known_images, *known], noise)
            fitted = replace(fitted, model=model, regressions=regressions)
        self.state_ = replace(
            fitted,
            min_scores=min_scores,
            typical_best=typical_best,
            miss_rates=calibrating.miss_rates(zip(parts, known, strict=True), self.miss_rate),
            part_coefficients=calibrating.part_coefficients(zip(parts, known, strict=True), fitted.part_coefficients),
            score_coefficients=None,
            calibration=Calibration(),
        )
        self._prepare()
        groups = map(str, patient_groups(dataset_dicts))
        assembled = map(self.explain, predictions, map(scale_of, dataset_dicts))
        sizes = [instances.image_size for instances in predictions]
        learned = calibrating.learn_from(zip(groups, sizes, assembled, known, strict=True))
        self.state_ = replace(
            self.state_,
            regressions={
                key: replace(regression, std=regression.std * learned.straying)
                for key, regression in self.state_.regressions.items()
            },
            whole_weights=learned.whole_weights,
            score_coefficients=learned.score_coefficients,
            calibration=calibrate(
                learned.samples, self.ranker_.table, self.coverage, seen_values(fitted.examples, self.taxonomy)
            ),
        )
        self._prepare()
        return self

    def assemble(self, instances: Instances, mm_per_pixel: Scale | None = None) -> list[Implant]:
        """Implants of one image, best score first.

        Args:
            instances: ``pred_boxes``, ``scores`` and ``pred_classes``; whatever cannot be used is passed over.
            mm_per_pixel: scale of the image, where it is known; where pixels are not square, 2×2.

        Raises:
            ValueError: the scale is none.
        """
        return list(self.explain(instances, mm_per_pixel).implants)

    def explain(self, instances: Instances, mm_per_pixel: Scale | None = None) -> Assembly:
        """Like ``assemble``, with the parts that belong to no implant."""
        fitted, mm_per_pixel = self._fitted(), checked_scale(mm_per_pixel)
        detections = drop_weak(usable(instances, self.meanings), fitted.min_scores, fitted.typical_best)
        parts = gather(detections, self.meanings)
        arrays = self._arrays(parts)
        members, axis = self._group(arrays, mm_per_pixel)
        learned = fitted.model.aspects, fitted.regressions, fitted.whole_weights
        found = outlines(parts, members, *learned, axis, instances.image_size)
        rankings = self.ranker_.rank([readings_of(outline.parts, outline.whole) for outline in found])
        implants = [self._implant(o, ranking, mm_per_pixel) for o, ranking in zip(found, rankings, strict=True)]
        used = set(members.ravel().tolist())
        return Assembly(
            tuple(sorted(implants, key=lambda implant: (-implant.score, implant.box))),
            tuple(part for index, part in enumerate(parts) if index not in used),
        )

    def save(self, path: str | Path) -> None:
        """Write what was learned as JSON."""
        state.save_state(path, self._fitted(), self.thing_classes, axis_values(self.taxonomy))

    def load(self, path: str | Path) -> PartAssembler:
        """Read what ``save`` wrote; product lines, systems and values that came since take part in the ranking.

        Raises:
            ValueError: the file is none of ours, of another version, of a detector with other classes, or of a
                taxonomy with values that are none of this one.
        """
        self.state_ = state.load_state(path, self.thing_classes, axis_values(self.taxonomy))
        self._known_images = []
        self._prepare()
        return self

    def set_params(self, **params: Any) -> PartAssembler:
        """Change parameters of the constructor. What was learned stays, unless it was of other classes.

        Raises:
            ValueError: as the constructor, or a taxonomy lacks values of the one before. Whatever is raised, nothing is
                changed.
        """
        defaults = {"lines": default_lines, "taxonomy": default_taxonomy}
        before, learned = self.get_params(deep=False), self.state_
        try:
            super().set_params(**{k: defaults[k]() if k in defaults and v is None else v for k, v in params.items()})
            self.thing_classes, self.lines = tuple(self.thing_classes), tuple(self.lines)
            self._derive()
            if self.thing_classes != before["thing_classes"]:
                self.state_ = None
            elif learned is not None:
                if "taxonomy" in params:
                    values = [axis_values(taxonomy) for taxonomy in (before["taxonomy"], self.taxonomy)]
                    self.state_ = state.of_today(learned, self.thing_classes, *values)
                self._prepare()
        except Exception:
            super().set_params(**before)
            self._derive()
            self.state_ = learned
            if learned is not None:
                self._prepare()
            raise
        return self

    def _derive(self) -> None:
        """Check the parameters, and note what follows from them."""
        if self.method not in METHODS:
            raise ValueError(f"ASSEMBLY.METHOD: found {self.method!r}, expected one of {', '.join(METHODS)}")
        self._check_ranges()
        if foreign := {line.system for line in self.lines} - set(self.taxonomy.systems):
            raise ValueError(
                f"lines: found lines of {', '.join(sorted(foreign))}, expected systems of the taxonomy "
                f"({', '.join(self.taxonomy.systems)}); add them there, or leave the lines out"
            )
        self.longest = max((length for line in self.lines for length in line.lengths), default=math.inf)
        self.meanings = meanings(self.thing_classes, self.taxonomy)
        self.num_slots = len({meaning.slot for meaning in self.meanings if meaning is not None})

    def __sklearn_is_fitted__(self) -> bool:
        return self.state_ is not None

    def _check_ranges(self) -> None:
        for key, (low, high, with_low, with_high) in RANGES.items():
            value = getattr(self, key.lower())
            if not (low < value < high or (with_low and value == low) or (with_high and value == high)):
                span = f"{'[' if with_low else '('}{low:g}, {high:g}{']' if with_high else ')'}"
                raise ValueError(f"ASSEMBLY.{key}: found {value!r}, expected a number in {span}")

    def _fitted(self) -> state.AssemblerState:
        if self.state_ is None:
            raise NotFittedError("this PartAssembler has learned nothing yet: call `fit` or `load` first")
        return self.state_

    def _prepare(self) -> None:
        fitted = self._fitted()
        self.ranker_ = Ranker(build_table(self.lines, self.taxonomy, fitted.examples), fitted.calibration)

    def _uncalibrated(self, readings: Array) -> Array:
        """[4, 3] as in ``AssemblerState``: a part of [4] usual readings of full score is worth ``false_cost``."""
        coefficients = np.zeros((len(SLOTS), 3))
        coefficients[:WHOLE, 1] = self.false_cost / readings[:WHOLE]
        coefficients[WHOLE, 2] = self.false_cost  # a whole implant stays one, however low its score
        return coefficients

    def _arrays(self, parts: Sequence[Part]) -> Parts:
        slots = np.array([SLOTS.index(part.third) for part in parts], np.intp)
        alone = (calibrating.part_features(parts) * self._fitted().part_coefficients[slots]).sum(axis=1)
        return Parts(np.array([part.box for part in parts]).reshape(-1, 4), slots, np.maximum(alone, 0.0))

    def _group(self, parts: Parts, mm_per_pixel: Scale | None) -> tuple[Indices, Array | None]:
        """[implants, 4] members and the axis that the implants of the image share, where it shows."""
        if self.method == "kmeans":
            members = k_means(parts)
            return members, _shared_axis(parts, members)
        if self.method == "kmeans_paper":
            members = k_means_paper(parts, self.merge_distance, self.merge_overlap)
            return members, _shared_axis(parts, members)
        fitted = self._fitted()
        missing = -np.log(fitted.miss_rates)
        if not (parts.slots == WHOLE).any():
            missing[WHOLE] = 0.0  # a detector without whole implants misses none
        candidates = enumerate_candidates(parts, fitted.model, missing)
        if mm_per_pixel is not None:
            candidates = prefer_known_lengths(candidates, parts, mm_per_pixel, self.longest)
        chosen = partition(candidates, parts.alone)
        axis = _shared_axis(parts, candidates.members[chosen])
        if axis is not None:
            candidates = prefer_axis(candidates, parts, fitted.model, axis)
            chosen = partition(candidates, parts.alone)
            axis = _shared_axis(parts, candidates.members[chosen])
        members = candidates.members[chosen]
        gain = gains(candidates, parts.alone)[chosen]
        return standing_apart(members, gain, parts, fitted.model.aspects), axis

    def _implant(self, outline: Outline, ranking: Ranking, mm_per_pixel: Scale | None) -> Implant:
        coefficients = self._fitted().score_coefficients
        if coefficients is None:
            score = calibrating.mean_score(outline.parts, outline.whole, self.num_slots)
        else:
            score = calibrating.implant_score(calibrating.score_features(outline.parts, outline.whole), coefficients)
        return Implant(
            parts=outline.parts,
            whole=outline.whole,
            box=outline.box,
            score=score,
            axis=outline.axis,
            width=outline.width,
            mm_per_pixel=mm_per_pixel,
            ranking=ranking,
        )


def _shared_axis(parts: Parts, members: Indices) -> Array | None:
    """[2] mean axis of the implants that show one, complete ones counting double; None if there is none."""
    count = (members[:, :WHOLE] >= 0).sum(axis=1)
    if not (count > 1).any():
        return None
    return mean_axis(end_to_end(members[count > 1], parts), count[count > 1] - 1.0)
