"""Teeth as stacks of oval cross sections: enamel, dentine, pulp, one to three roots."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.interpolate import PchipInterpolator

from implantdet.phantom.arrays import Array
from implantdet.phantom.canvas import MU, Canvas, Column

# Mean mesio-distal crown width, crown height, root length (mm) and number of roots, from the midline outwards.
# fmt: off
UPPER = (
    (8.5, 10.5, 13, 1), (6.5, 9, 13, 1), (7.6, 10, 17, 1), (7.1, 8.5, 14, 2),
    (6.9, 8.5, 14, 1), (10.2, 7.5, 12.5, 3), (9.6, 7.2, 11.5, 3), (8.6, 6.5, 11, 2),
)
LOWER = (
    (5.3, 9, 12.5, 1), (5.7, 9.5, 14, 1), (6.9, 11, 16, 1), (7.0, 8.5, 14, 1),
    (7.1, 8, 14.5, 1), (11.2, 7.5, 14, 2), (10.5, 7, 13, 2), (10.0, 7, 11, 2),
)
# fmt: on
OUTLINE_HEIGHTS = np.linspace(-1, 0, 25)  # of a crown, relative to its height


@cache
def _outline(molar: bool) -> Array:
    """Half width of a crown at ``OUTLINE_HEIGHTS``, relative to half its largest width."""
    shape = (0.78, 0.93, 1.0, 0.96, 0.86) if molar else (0.45, 0.78, 1.0, 0.93, 0.72)
    return PchipInterpolator([-1, -0.92, -0.6, -0.3, 0], shape)(OUTLINE_HEIGHTS)


@dataclass(frozen=True)
class Tooth:
    """One tooth, its cemento-enamel junction at ``neck``, its roots pointing along ``angle`` (see ``Column``)."""

    neck: tuple[float, float]
    angle: float
    width: float
    crown: float
    root: float
    roots: int
    molar: bool
    wear: float
    pulp: float

    @classmethod
    def sample(
        cls, rng: np.random.Generator, upper: bool, position: int, neck: tuple[float, float], angle: float
    ) -> Tooth:
        """A tooth of natural variation; position counts from 0 at the midline to 7."""
        width, crown, root, roots = (UPPER if upper else LOWER)[position]
        scale = rng.normal(1, 0.06, size=3).clip(0.85, 1.15)
        return cls(
            neck, angle, width * scale[0], crown * scale[1], root * scale[2], roots, position >= 5,
            rng.uniform(0, 0.35), rng.uniform(0.5, 1.2),
        )  # fmt: skip

    @property
    def neck_width(self) -> float:
        """Mesio-distal width at the neck."""
        return self.width * (0.86 if self.molar else 0.72)

    def crown_outline(self, inset: float = 0.0) -> Column:
        """The crown; an inset in millimetres gives the dentine core under the enamel."""
        height, half = self.crown * (1 - 0.25 * self.wear), self.width / 2
        along, widths = height * OUTLINE_HEIGHTS, half * _outline(self.molar)
        if inset:
            along = along * (1 - 1.2 * inset / height)
            # The enamel runs out to nothing at the neck.
            widths = np.maximum(widths - inset * np.minimum(1, -OUTLINE_HEIGHTS / 0.5), 0.1)
        cusps = (1 - self.wear) * (1.1 if self.molar else 0.0)
        return Column(self.neck, self.angle, along, widths, roundness=1.1 if self.molar else 1.2, cusps=cusps)

    def root_columns(self, rng: np.random.Generator) -> list[Column]:
        """The roots, from the neck to the apices."""
        trunk = 0.3 * self.root if self.roots > 1 else 0.0
        spread = {1: [0.0], 2: [-1.0, 1.0], 3: [-1.0, 0.1, 1.0]}[self.roots]
        along = np.linspace(0, 1, 9)
        shape = np.array([1, 0.97, 0.92, 0.85, 0.76, 0.65, 0.52, 0.36, 0.12])
        columns = []
        for side in spread:
            length = self.root * rng.uniform(0.92, 1.0)
            half = shape * self.neck_width / 2
            reach = 0.26 * self.neck_width * side
            bend = reach * np.clip(along * length / max(trunk, 1), 0, 1) + rng.normal(0.15 * side, 0.35) * along**3 * 2
            if self.roots > 1:
                half = np.minimum(half * 0.52, half) * (1 + 0.1 * rng.standard_normal())
            start = 0.0 if self.roots == 1 else 0.25 * trunk
            z = start + along * (length - start)
            columns.append(Column(self.neck, self.angle, z, half, bend, 1.15 if self.roots == 1 else 1.3))
        if self.roots > 1:
            z = np.array([0.0, 0.6 * trunk, trunk, 1.25 * trunk])
            half = np.array([1, 0.97, 0.9, 0.6]) * self.neck_width / 2
            columns.append(Column(self.neck, self.angle, z, half, roundness=0.75))
        return columns

    def canals(self, roots: list[Column], width: float) -> list[Column]:
        """Root canals of about this half width at the neck."""
        taper = np.linspace(1, 0.25, 9)
        return [
            Column(root.origin, root.angle, root.along * 0.96, width * taper, root.bend)
            for root in roots
            if len(root.along) == 9
        ]

    def draw(self, canvas: Canvas, rng: np.random.Generator, treated: bool = False, bare: bool = False) -> Array:
        """Add the tooth to the canvas.

        Args:
            canvas: receives the optical depth.
            rng: source of randomness.
            treated: gutta-percha instead of pulp.
            bare: leave the crown away (a restoration takes its place).

        Returns:
            [rows, columns] bool, the cells that the roots cover.
        """
        roots = self.root_columns(rng)
        path = np.zeros_like(canvas.tissue)
        for root in roots:
            if (found := root.thickness(canvas)) is not None:
                # Where roots join their paths must not add up.
                np.maximum(path[found[0]], found[1], out=path[found[0]])
        # A root takes the place of spongy bone.
        canvas.tissue += path * (np.float32(MU["dentine"]) - np.float32(MU["trabecular"]) * canvas.bone)
        if not bare:
            self._draw_crown(canvas)
        self._draw_canals(canvas, roots, treated)
        return path > 0

    def _draw_crown(self, canvas: Canvas) -> None:
        outer, inner = self.crown_outline(), self.crown_outline(inset=0.9 if self.molar else 0.7)
        for column, mu in ((outer, MU["enamel"]), (inner, MU["dentine"] - MU["enamel"])):
            if (found := column.thickness(canvas)) is not None:
                canvas.tissue[found[0]] += found[1] * np.float32(mu)

    def _draw_canals(self, canvas: Canvas, roots: list[Column], treated: bool) -> None:
        width = self.pulp * (0.42 if self.roots == 1 else 0.3)
        for column in self.canals(roots, width * (0.8 if treated else 1)):
            if (found := column.thickness(canvas)) is None:
                continue
            if treated:
                canvas.dense[found[0]] += found[1] * np.float32(MU["gutta"])
            else:
                canvas.tissue[found[0]] -= found[1] * np.float32(1.6 * (MU["dentine"] - MU["pulp"]))
        h = self.crown * 0.45
        chamber = Column(
            self.neck,
            self.angle,
            np.array([-h, -0.7 * h, 0.0, 1.0]),
            width * np.array([0.3, 1.6, 1.5, 1.0]) * (1.7 if self.molar else 1),
        )
        if not treated and (found := chamber.thickness(canvas)) is not None:
            canvas.tissue[found[0]] -= found[1] * np.float32(1.3 * (MU["dentine"] - MU["pulp"]))
