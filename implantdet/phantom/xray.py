"""From optical depth to grey values: exposure, scatter, blur, noise, display curve, sharpening.

I = exp(-depth) (Beer and Lambert) reaches the detector together with a fog of scatter; the display shows a curve over
-log I, as dental sensors do, so that metal is bright and air is black.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import PchipInterpolator

from implantdet.phantom.arrays import Array


@dataclass(frozen=True)
class Exposure:
    """Settings of one shot.

    Attributes:
        grey_air, grey_bone, grey_implant, grey_crown: anchors of the display curve, 0 to 255.
        scatter: fog relative to the mean intensity.
        blur: standard deviation of the detector's point spread, pixels.
        photons: per pixel in the open beam; quantum noise is 1 / sqrt of it.
        electronic: noise of the electronics relative to the open beam.
        sharpen: strength of unsharp masking.
        sharpen_radius: its radius in pixels.
        equalize: strength of local contrast equalization, as panoramic machines apply it.
        grain: noise of the display chain (film scanners, recompression), grey values.
    """

    grey_air: float
    grey_bone: float
    grey_implant: float
    grey_crown: float
    scatter: float
    blur: float
    photons: float
    electronic: float
    sharpen: float
    sharpen_radius: float
    equalize: float
    grain: float

    @classmethod
    def sample(cls, rng: np.random.Generator, panoramic: bool) -> Exposure:
        """A shot of ordinary quality; the grey anchors follow measured radiographs."""
        bone = float(np.clip(rng.normal(92 if panoramic else 122, 20 if panoramic else 24), 60, 175))
        implant = float(np.clip(rng.normal(196 if panoramic else 230, 12 if panoramic else 9), 170, 246))
        return cls(
            grey_air=float(rng.gamma(2.0, 5.0)),
            grey_bone=bone,
            grey_implant=max(implant, bone + 45),
            grey_crown=float(rng.uniform(248, 256)),
            scatter=float(rng.uniform(0.02, 0.09)),
            blur=float(rng.uniform(0.35, 1.0)),
            photons=float(np.exp(rng.uniform(np.log(1500), np.log(20000)))),
            electronic=float(rng.uniform(0.0005, 0.003)),
            sharpen=float(rng.choice([0.0, rng.uniform(0.2, 0.8), rng.uniform(0.8, 2.2)], p=[0.3, 0.45, 0.25])),
            sharpen_radius=float(rng.uniform(0.8, 3.5)),
            equalize=float(rng.choice([0.0, rng.uniform(0.1, 0.5)], p=[0.6, 0.4]) * (1.5 if panoramic else 1.0)),
            grain=float(rng.gamma(1.5, 1.0)),
        )


def intensity(depth: Array, exposure: Exposure) -> Array:
    """Noise-free intensity at the detector, 1 in the open beam."""
    primary = cv2.exp(-depth)
    rows, columns = primary.shape
    small = cv2.resize(primary, (max(columns // 16, 2), max(rows // 16, 2)), interpolation=cv2.INTER_AREA)
    fog = cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), (columns, rows), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(cv2.GaussianBlur(primary, (0, 0), exposure.blur), 1.0, fog, exposure.scatter, 0.0)


def display_curve(exposure: Exposure, bone: float, implant: float, fog: float) -> PchipInterpolator:
    """Monotone curve from -log I to grey.

    Args:
        exposure: holds the grey anchors.
        bone: optical depth of plain bone.
        implant: optical depth of an implant in bone.
        fog: scatter intensity.
    """

    def signal(depth: float) -> float:
        return float(-np.log(np.exp(-depth) + fog))

    greys = [
        exposure.grey_air,
        exposure.grey_bone,
        exposure.grey_implant,
        exposure.grey_crown,
        exposure.grey_crown + 0.5,
    ]
    signals = [signal(0.18), signal(bone), signal(implant), signal(implant + 2.0), signal(implant + 8.0)]
    greys, signals = [0.0, *np.maximum.accumulate(greys)], [signal(0.0) - 0.02, *signals]
    keep = [0] + [i for i in range(1, len(signals)) if signals[i] > signals[i - 1] + 1e-3]
    return PchipInterpolator(np.array(signals)[keep], np.array(greys)[keep])


def expose(depth: Array, exposure: Exposure, rng: np.random.Generator, bone: float, implant: float) -> Array:
    """Grey values of a radiograph, before they are rounded.

    Args:
        depth: [H, W] optical depth.
        exposure: settings of the shot.
        rng: source of the noise.
        bone: optical depth that shows as ``grey_bone``.
        implant: optical depth that shows as ``grey_implant``.
    """
    beam = intensity(depth, exposure)
    fog = exposure.scatter * float(cv2.exp(-depth[::8, ::8]).mean())
    noise: Array = cv2.sqrt(cv2.addWeighted(beam, 1 / exposure.photons, beam, 0.0, exposure.electronic**2))
    noise *= rng.standard_normal(beam.shape, dtype=np.float32)
    beam += noise
    signal: Array = cv2.log(np.maximum(beam, np.float32(2e-3), out=beam))  # minus the optical depth
    curve = display_curve(exposure, bone, implant, fog)
    knots = np.linspace(curve.x[0], curve.x[-1], 1024)
    table = curve(knots).astype(np.float32)
    # A lookup table instead of the spline itself: 1024 steps are finer than a grey value.
    scale = 1023 / (knots[-1] - knots[0])
    signal *= np.float32(-scale)
    signal -= np.float32(knots[0] * scale)
    grey = table.take(signal.astype(np.int32), mode="clip")
    if exposure.sharpen > 0:
        soft = cv2.GaussianBlur(grey, (0, 0), exposure.sharpen_radius)
        grey = cv2.addWeighted(grey, 1 + exposure.sharpen, soft, -exposure.sharpen, 0.0)
    if exposure.equalize > 0:
        grey = cv2.addWeighted(grey, 1 + exposure.equalize, _surroundings(grey), -exposure.equalize, 0.0)
    grain = rng.standard_normal(grey.shape, dtype=np.float32)
    return cv2.scaleAdd(grain, exposure.grain, grey)


def _surroundings(grey: Array) -> Array:
    """Mean grey of about a tenth of the image around each pixel."""
    rows, columns = grey.shape
    small = cv2.resize(grey, (max(columns // 8, 2), max(rows // 8, 2)), interpolation=cv2.INTER_AREA)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), (columns, rows), interpolation=cv2.INTER_LINEAR)
