"""The edge of the sensor in the image: rounded corners, a rim, and the black wedges of turned copies."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from implantdet.phantom.arrays import Array

REACH = 1.03  # of the sides of the file: the largest sensors, whose edge is beyond it


@dataclass(frozen=True)
class Frame:
    """A rounded rectangle in the image, in pixels.

    Attributes:
        centre: x and y.
        half: half width and half height.
        radius: of the corners.
        turn: in radians.
        rim: grey value of a line along the edge; 0 for none.
        outside: grey value beyond the edge.
        letters: burnt into a corner of the sensor; empty for none.
        letter_grey: their grey value.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    radius: float
    turn: float
    rim: float
    outside: float
    letters: str = ""
    letter_grey: float = 255.0

    def distance(self, size: tuple[int, int]) -> Array:
        """[H, W] pixels to the edge, positive inside."""
        x = np.arange(size[1], dtype=np.float32)[None] + np.float32(0.5 - self.centre[0])
        y = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5 - self.centre[1])
        cos, sin = np.float32(np.cos(self.turn)), np.float32(np.sin(self.turn))
        across = np.abs(x * cos + y * sin)
        across -= np.float32(self.half[0] - self.radius)
        along = np.abs(y * cos - x * sin)
        along -= np.float32(self.half[1] - self.radius)
        flat = np.minimum(np.maximum(across, along), 0)
        corner = cv2.magnitude(np.maximum(across, 0, out=across), np.maximum(along, 0, out=along))
        return np.float32(self.radius) - corner - flat

    def apply(self, grey: Array, distance: Array) -> Array:
        """The image with everything beyond the edge replaced.

        Args:
            grey: [H, W] grey values.
            distance: [H, W] pixels to the edge, from ``distance``.
        """
        inside = np.minimum(np.maximum(distance + np.float32(0.5), 0), 1)
        if self.rim > 0:
            line = np.minimum(np.maximum(np.float32(1.6) - np.abs(distance - np.float32(1.5)), 0), 1)
            grey = grey + line * (np.float32(self.rim) - grey)
        if self.letters:
            self._write(grey)
        return grey * inside + np.float32(self.outside) * (1 - inside)

    def _write(self, grey: Array) -> None:
        """Burn the letters into the lower left or the upper right corner, in place."""
        scale = min(grey.shape) / 620
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        across, along = -self.half[0] * 0.86, self.half[1] * (0.9 if len(self.letters) % 2 else -0.82)
        at = (round(self.centre[0] + across * cos - along * sin), round(self.centre[1] + across * sin + along * cos))
        ink = np.zeros(grey.shape, np.uint8)
        cv2.putText(ink, self.letters, at, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
        grey += ink * np.float32(1 / 255) * (np.float32(self.letter_grey) - grey)


def sample_frame(rng: np.random.Generator, size: tuple[int, int], turn: float) -> Frame:
    """The edge of a periapical sensor whose image fills the file, turned by ``turn``."""
    height, width = size
    letters = str(rng.choice(["", "F8", "RVG", "L", "R", "2", "a"], p=[0.78, 0.05, 0.04, 0.04, 0.04, 0.03, 0.02]))
    return Frame(
        centre=(width / 2, height / 2),
        half=(width / 2 * float(rng.uniform(0.96, REACH)), height / 2 * float(rng.uniform(0.96, REACH))),
        radius=float(rng.choice([0.0, rng.uniform(0.03, 0.17)], p=[0.3, 0.7])) * min(size),
        turn=turn,
        rim=float(rng.choice([0.0, rng.uniform(120, 255)], p=[0.6, 0.4])),
        outside=float(rng.choice([0.0, rng.uniform(0, 20), 255.0], p=[0.8, 0.18, 0.02])),
        letters=letters,
        letter_grey=float(rng.choice([255.0, 200.0, 10.0])),
    )
