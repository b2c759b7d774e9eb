"""Found implants beside true ones, image by image: what every figure about implants starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from implantdet.assembly.calibrating import match, match_in_order
from implantdet.assembly.geometry import iou
from implantdet.assembly.known import KnownImplant
from implantdet.structures import Assembly, Implant, Part
from implantdet.taxonomy import THIRDS

CONFIDENT = 0.5  # implants of a lower score count as found, but not as false


class Third(NamedTuple):
    """A detected third.

    Attributes:
        owner: index of the implant that it was given to; None if it was left over.
        part: the detection.
        truth: index of the true implant whose third it is; None for a false positive.
    """

    owner: int | None
    part: Part
    truth: int | None


@dataclass(frozen=True)
class ImageOutcome:
    """What was found in one image, and what is there.

    Attributes:
        image_id: of the dataset.
        size: width and height, in pixels.
        assembly: what was found.
        truth: what is there.
    """

    image_id: int
    size: tuple[int, int]
    assembly: Assembly
    truth: tuple[KnownImplant, ...]

    @cached_property
    def pairs(self) -> dict[int, int]:
        """Index of a found implant → index of the true one with the same place: IoU >= 0.5, the best scored first."""
        return dict(match_in_order([i.box for i in self.assembly.implants], [i.box for i in self.truth]))

    @property
    def matched(self) -> list[tuple[Implant, KnownImplant]]:
        """Found implants that are there."""
        return [(self.assembly.implants[i], self.truth[j]) for i, j in self.pairs.items()]

    @property
    def missed(self) -> list[KnownImplant]:
        """True implants that were not found."""
        return [implant for j, implant in enumerate(self.truth) if j not in self.pairs.values()]

    @property
    def false(self) -> list[Implant]:
        """Implants that were found with confidence and are not there."""
        found = enumerate(self.assembly.implants)
        return [implant for i, implant in found if i not in self.pairs and implant.score >= CONFIDENT]

    @cached_property
    def thirds(self) -> list[Third]:
        """Every detected third, matched with the true ones at IoU >= 0.5."""
        implants = enumerate(self.assembly.implants)
        parts: list[tuple[int | None, Part]] = [(owner, part) for owner, i in implants for part in i.observed]
        parts += [(None, part) for part in self.assembly.unexplained]
        thirds = []
        for third in THIRDS:
            mine = [(owner, part) for owner, part in parts if part.third == third]
            owners = [j for j, implant in enumerate(self.truth) if third in implant.boxes]
            truth = dict(match([part.box for _, part in mine], [self.truth[j].boxes[third] for j in owners]))
            for index, (owner, part) in enumerate(mine):
                thirds.append(Third(owner, part, owners[truth[index]] if index in truth else None))
        return thirds

    @property
    def error(self) -> float:
        """How bad an image is: 1 for each missed, false or wrongly named implant, and 1 - IoU for each found one."""
        total = float(len(self.missed) + len(self.false))
        for implant, truth in self.matched:
            total += 1 - float(iou(np.array(implant.box), np.array(truth.box)))
            total += truth.system is not None and top_system(implant) != truth.system
        return total


def top_system(implant: Implant) -> str | None:
    """The most probable system, of equally probable ones the first of the taxonomy; None without a ranking."""
    return implant.ranking.systems[0].name if implant.ranking else None
