"""Stops a pre-training whose target has become (nearly) the same for every image.

A model that predicts its own embeddings can make its loss small by making them constant. The loss does not show this,
and neither does a spread over all tokens: positions alone keep that up. So the spread is measured at every position
across images. Letters: N images, L positions, T channels of a target.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.engine import HookBase
from torch import Tensor

from implantdet.modeling.masked_image_model import MaskedImageModel
from implantdet.modeling.mim_targets import EncoderTarget, PixelTarget

logger = logging.getLogger(__name__)


class TargetSpread(NamedTuple):
    """How much targets differ from image to image.

    Attributes:
        std: standard deviation across images, the root mean square over positions and channels.
        effective_rank: exponential of the entropy of the singular values (RankMe, arXiv:2210.02885) of the N targets at
            a position, centred; the mean over positions. From 1, also if there is no spread at all, to N - 1.
    """

    std: float
    effective_rank: float


_COLLAPSED = TargetSpread(std=0.0, effective_rank=1.0)  # the least that each can be


def target_spread(targets: Tensor) -> TargetSpread:
    """Measure targets (N, L, T) of N >= 2 images; NaN of targets that are not finite."""
    # Double precision: what is left of a collapsed target is small beside its mean.
    if not targets.isfinite().all():
        return TargetSpread(math.nan, math.nan)
    centred = targets.double() - targets.double().mean(dim=0)
    std = centred.square().sum(dim=0).div(len(targets) - 1).mean().sqrt()
    points = centred.transpose(0, 1)
    # Eigenvalues of the N × N products are squares of the singular values.
    energies = torch.linalg.eigvalsh(points @ points.mT).clamp(min=0)
    # Rounding leaves eigenvalues that would count as directions.
    energies = energies.where(energies > 1e-9 * energies.amax(dim=1, keepdim=True), 0.0)
    shares = energies.sqrt() / energies.sqrt().sum(dim=1, keepdim=True).clamp(min=1e-300)
    entropy = -torch.special.xlogy(shares, shares).sum(dim=1)
    return TargetSpread(float(std), float(entropy.exp().mean()))


class TargetCollapseError(RuntimeError):
    """The target of a pre-training has collapsed."""


def _advice(model: MaskedImageModel) -> str:
    """What this model may change, so that the encoder cannot make its target constant."""
    ways = ["SOLVER.BASE_LR lower"]
    if isinstance(model.target, EncoderTarget):
        ways.append(f"MODEL.MIM.EMA_DECAY nearer to 1 than {model.target.decay:g}")
    if not model.norm_target:
        ways.append("MODEL.MIM.NORM_TARGET True")
    if not isinstance(model.target, PixelTarget):
        ways += ["MODEL.MIM.PIXEL_WEIGHT above 0"] if model.pixel_weight == 0 else []
        ways.append("MODEL.MIM.TARGET pixel with PIXEL_WEIGHT 0, which cannot collapse")
    # A resumed run would keep its learning rates, and its checkpoint may not fit another target.
    return "; or ".join(ways) + ". Then start anew, without --resume"


class CollapseGuard(HookBase):
    """Measures the target's spread on the same images again and again, and stops when too little is left.

    Writes the scalars ``target_std`` and ``target_effective_rank``.

    Args:
        model: the model that is trained, not wrapped.
        load_images: returns the images to measure on, (N, C, H, W), grey levels; called once.
        period: iterations between measurements.
        min_fraction: smallest share of the spread before the training that is allowed, in [0, 1); of an effective rank
            it is a share of what is above 1.
    """

    def __init__(
        self, model: MaskedImageModel, load_images: Callable[[], Tensor], period: int, min_fraction: float
    ) -> None:
        if period < 1 or not 0 <= min_fraction < 1:
            raise ValueError(
                f"found MODEL.MIM.GUARD_PERIOD {period} and GUARD_FRACTION {min_fraction}; "
                "expected a period >= 1 and a fraction in [0, 1)"
            )
        self._model = model
        self._load_images = load_images
        self._period = period
        self._min_fraction = min_fraction
        self._images: Tensor | None = None
        self._start: TargetSpread | None = None
        self._num_images = 0  # of the start

    def before_train(self) -> None:
        """Measure the start, unless it is known from the training that is resumed, of as many images."""
        self._images = self._load_images()
        if self._start is not None and self._num_images not in (0, len(self._images)):  # 0: nobody knows
            logger.warning(
                "MODEL.MIM.GUARD_IMAGES: the spread before the training was that of %d images, now there are %d, whose "
                "effective rank is another: the target is compared with what it is now.",
                *(self._num_images, len(self._images)),
            )
            self._start = None
        self._num_images = len(self._images)
        if self._start is None:
            self._start = self.measure()
            logger.info("The target before training: %s", self._start)

    def after_step(self) -> None:
        """Measure, if it is time.

        Raises:
            TargetCollapseError: too little spread is left.
        """
        next_iter = self.trainer.iter + 1
        if next_iter % self._period and next_iter != self.trainer.max_iter:
            return
        spread = self.measure()
        self.trainer.storage.put_scalars(
            target_std=spread.std, target_effective_rank=spread.effective_rank, smoothing_hint=False
        )
        assert self._start is not None
        for name, now, start, least in zip(spread._fields, spread, self._start, _COLLAPSED, strict=True):
            allowed = least + self._min_fraction * (start - least)
            if math.isnan(now):
                raise TargetCollapseError(
                    f"the training diverged: after {next_iter} iterations the target is not finite. "
                    f"Set {_advice(self._model)}"
                )
            if now < allowed:
                raise TargetCollapseError(
                    f"the target collapsed: after {next_iter} iterations its {name} across images is {now:.3g}, "
                    f"expected {allowed:.3g} or more, {self._min_fraction:g} (MODEL.MIM.GUARD_FRACTION) of the way "
                    f"from {least:g}, a collapsed target, to the {start:.3g} before training. "
                    f"Set {_advice(self._model)}"
                )

    @torch.no_grad()
    def measure(self) -> TargetSpread:
        """The spread of the target now, on the images of the guard."""
        assert self._images is not None
        parts = self._images.split(16)  # bounds the memory, whatever the size of the images
        return target_spread(torch.cat([self._model.targets(self._model.normalize(part)) for part in parts]))

    def state_dict(self) -> dict[str, Any]:
        """The spread before training, and of how many images it is."""
        return {"start": list(self._start), "num_images": self._num_images} if self._start else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._start, self._num_images = TargetSpread(*state_dict["start"]), state_dict.get("num_images", 0)
