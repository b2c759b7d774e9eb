"""An implant as a solid: radius over height and angle, minus its inner channel and its apical hole.

Coordinates (millimetres): z runs along the axis from the platform (0) to the apex (length), x and y across it,
theta = atan2(y, x). The apical hole runs along y.
The frame is right-handed, so a thread whose crest rises with theta is a right-hand thread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from implantdet.phantom.arrays import Array
from implantdet.phantom.lines import ProductLine

TABLE_STEP = 0.025  # mm between rows of the radius table
TABLE_ANGLES = 64
APICAL_FADE = 0.5  # share of the groove's length over which it deepens

# Share of the pitch that crest, apical flank, root and coronal flank take, in the order of growing phase (towards the
# apex). Flank angles follow from these and the depth; V about 30°, reverse buttress about 15°.
PROFILES = {
    "v_shaped": (0.10, 0.38, 0.14, 0.38),
    "square": (0.42, 0.06, 0.46, 0.06),
    "buttress": (0.14, 0.12, 0.22, 0.52),
    "reverse_buttress": (0.14, 0.52, 0.22, 0.12),
    "plateau": (0.30, 0.12, 0.46, 0.12),
}


def thread_profile(shape: str, phase: Array) -> Array:
    """Height of a thread between root (0) and crest (1), over the phase in turns; the crest is at phase 0."""
    crest, apical, root, coronal = PROFILES[shape]
    knots = np.cumsum([0, crest / 2, apical, root, coronal, crest / 2])
    return np.interp(np.mod(phase, 1.0), knots, [1, 1, 0, 0, 1, 1])


@dataclass(frozen=True)
class Solid:
    """One implant.

    Attributes:
        line: product line.
        diameter: of the body over the crests.
        length: from platform to apex.
        roll: angle of the thread start about the axis, in radians.
        table: radius [rows, 2 * angles + 1] on the grid of ``TABLE_STEP`` × 2π / ``TABLE_ANGLES``, for two turns.
    """

    line: ProductLine
    diameter: float
    length: float
    roll: float = 0.0
    table: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        z = np.arange(0, self.length + TABLE_STEP, TABLE_STEP)
        theta = np.arange(TABLE_ANGLES) * (2 * np.pi / TABLE_ANGLES)
        turn = self.radius(z[:, None], theta[None, :]).astype(np.float32)
        object.__setattr__(self, "table", np.hstack([turn, turn, turn[:, :1]]))

    @property
    def max_radius(self) -> float:
        """Largest distance of the surface from the axis."""
        return float(self.table.max())

    def envelope(self, z: Array) -> Array:
        """Radius over the crests at height z, without apical rounding."""
        height, platform = self.line.collar[0], self.line.platform_ratio(self.diameter)
        share, low, high = self.line.taper
        relative = 1 - share * np.clip((z / self.length - low) / (high - low), 0, 1)
        if height > 0:
            # Flared and converging collars are smooth curves, steepest at the platform.
            rest = np.clip(1 - z / height, 0, 1)
            relative = relative * (1 + (platform - 1) * rest**1.5)
        return relative * self.diameter / 2

    def _apex_limit(self, z: Array) -> Array:
        """Share of the envelope that the apical rounding leaves at height z."""
        shape, relative = self.line.apex
        height = min(relative * (1 - self.line.taper[0]) * self.diameter / 2, self.length / 3)
        rest = np.clip((self.length - z) / height, 0, 1)
        if shape == "dome":
            return np.sqrt(1 - (1 - rest) ** 2)
        end = 0.8 if shape == "flat" else 0.25
        return end + (1 - end) * rest

    def _cut(self, z: Array, theta: Array) -> Array:
        """Depth below the envelope: threads, microthreads, ring."""
        shape, _, depth, leads = self.line.thread
        pitch = self.line.pitch(self.diameter)
        depth = depth * self.diameter / 4.1
        phase = (z - self.line.thread_from) / pitch - leads * (theta + self.roll) / (2 * np.pi)
        run_in = np.clip((z - self.line.thread_from) / (0.4 * pitch), 0, 1)
        cut = depth * run_in * (1 - thread_profile(shape, phase))
        micro_height, micro_pitch = self.line.microthread
        if micro_height > 0:
            phase = (z - 0.2) / micro_pitch - (theta + self.roll) / (2 * np.pi)
            inside = np.clip((z - 0.2) / 0.1, 0, 1) * np.clip((0.2 + micro_height - z) / 0.1, 0, 1)
            cut = cut + 0.1 * inside * (1 - thread_profile("v_shaped", phase))
        position, height = self.line.ring
        if height > 0:
            cut = np.maximum(cut, depth * (np.abs(z - position * self.length) < height / 2))
        return cut

    def _groove_cut(self, z: Array, theta: Array) -> Array:
        """Depth of the cutting flutes below the surface."""
        start = self.length - self.groove_length
        along = np.clip((z - start) / (APICAL_FADE * self.groove_length), 0, 1)
        turn = (theta + self.roll) * self.line.grooves / (2 * np.pi)
        offset = np.abs(turn - np.round(turn)) * 2 * np.pi / self.line.grooves * self.diameter / 2
        depth = 0.22 * self.diameter * (1 - self.line.taper[0])
        return depth * along * np.clip((self.groove_width / 2 - offset) / 0.15, 0, 1)

    @property
    def groove_length(self) -> float:
        """Height of the cutting flutes."""
        return 0.32 * self.length

    @property
    def groove_width(self) -> float:
        """Width of one cutting flute."""
        return 0.27 * self.diameter

    def radius(self, z: Array, theta: Array) -> Array:
        """Distance of the surface from the axis; 0 above the platform and below the apex."""
        envelope = self.envelope(z)
        limit = self._apex_limit(z)
        outer = np.minimum(envelope - self._cut(z, theta), envelope * limit)
        if self.line.grooves:
            outer = outer - limit * self._groove_cut(z, theta)
        return np.where((z >= 0) & (z <= self.length), np.maximum(outer, 0), 0.0)

    def bore_radius(self, z: Array) -> Array:
        """Radius of the inner screw channel at height z; 0 where there is none."""
        radius, share, cone = self.line.bore
        radius = radius * self.diameter / 4.1
        depth = share * self.length
        opening = radius * 1.25 - z * np.tan(np.radians(cone)) if cone else np.full_like(z, radius)
        bottom = np.clip((depth - z) / 0.5, 0, 1)  # the drill leaves a cone
        bore = np.maximum(opening, 0.72 * radius) * bottom
        return np.where((z >= 0) & (z <= depth), np.minimum(bore, 0.8 * self.envelope(z)), 0.0)

    @property
    def hole_size(self) -> tuple[float, float, float]:
        """Half width, half height and height of the centre of the apical hole; half width 0 without one."""
        if self.line.hole == "none":
            return 0.0, 0.0, 0.0
        width = 0.14 * self.diameter
        height = width if self.line.hole == "round" else 0.11 * self.length
        return width, height, self.length - 0.06 * self.length - height - 0.5

    def hole_half_width(self, z: Array) -> Array:
        """Half width of the apical hole (a circle or a slot with round ends) at height z."""
        width, height, centre = self.hole_size
        if width == 0:
            return np.zeros_like(z)
        beyond = np.maximum(np.abs(z - centre) - (height - width), 0)
        return np.sqrt(np.maximum(width**2 - beyond**2, 0))
