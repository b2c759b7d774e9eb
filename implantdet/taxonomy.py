"""The vocabulary of implant design: thirds, axes, values and systems, read from ``taxonomy.yaml``.

Categories follow the COCO form. A part category is ``<third>.<axis>.<value>`` with the third as its
``supercategory``; a whole implant is named by its system, with the supercategory ``system``.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

THIRDS = ("coronal", "middle", "apical")
SYSTEM = "system"
# RGB of thirds and implants in every picture. People with red-green blindness tell them apart too (Okabe and Ito).
COLOURS = dict(zip((*THIRDS, SYSTEM), ((86, 180, 233), (240, 228, 66), (0, 158, 115), (213, 94, 0)), strict=True))


@dataclass(frozen=True)
class Axis:
    """One question that is asked of one third of an implant, such as ``middle.thread``."""

    third: str
    name: str
    values: tuple[str, ...]

    @property
    def key(self) -> str:
        """``<third>.<axis>``."""
        return f"{self.third}.{self.name}"

    @property
    def categories(self) -> tuple[str, ...]:
        """Category names of the values, in order."""
        return tuple(f"{self.key}.{value}" for value in self.values)


@dataclass(frozen=True)
class Taxonomy:
    """Design axes (Table 1 of the paper) and implant systems.

    Attributes:
        axes: every axis, thirds from coronal to apical.
        systems: names of the implant systems.
    """

    axes: tuple[Axis, ...]
    systems: tuple[str, ...]

    @classmethod
    def from_yaml(cls, path: str | Path) -> Taxonomy:
        """Read a taxonomy.

        Raises:
            ValueError: the file lacks a third, an axis has fewer than two values, a name stands twice or is empty, or
                that of an axis or a value has a dot in it, which separates them in the names of categories.
        """
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or set(content) != {"thirds", "systems"}:
            raise ValueError(f"{path}: expected the keys 'thirds' and 'systems' and no others")
        thirds = content["thirds"]
        if not isinstance(thirds, dict) or tuple(thirds) != THIRDS:
            raise ValueError(f"{path}: 'thirds' must list {', '.join(THIRDS)}, in this order; found {thirds!r}")
        for third, of_third in thirds.items():
            if not isinstance(of_third, dict):
                raise ValueError(f"{path}: '{third}' must map axes to their values; found {of_third!r}")
            for name in itertools.chain(
                of_third, *(values for values in of_third.values() if isinstance(values, list))
            ):
                if "." in str(name):
                    raise ValueError(f"{path}: '{third}' has the name {name!r}; expected names without a dot")
        axes = tuple(
            Axis(third, name, _values(path, f"{third}.{name}", values))
            for third in THIRDS
            for name, values in thirds[third].items()
        )
        return cls(axes, _values(path, "systems", content["systems"]))

    @property
    def part_categories(self) -> tuple[str, ...]:
        """Names of all part categories, axis by axis."""
        return tuple(category for axis in self.axes for category in axis.categories)

    def axis_of(self, category: str) -> Axis | None:
        """The axis that a part category answers, or None for any other category."""
        return next((axis for axis in self.axes if category in axis.categories), None)

    def supercategory(self, category: str) -> str | None:
        """``coronal``, ``middle``, ``apical`` or ``system``; None for a name outside the taxonomy."""
        if category in self.systems:
            return SYSTEM
        axis = self.axis_of(category)
        return None if axis is None else axis.third

    def coco_categories(self) -> list[dict[str, Any]]:
        """The ``categories`` of a COCO file: parts first, then systems, ids from 1."""
        names = self.part_categories + self.systems
        return [
            {"id": index, "name": name, "supercategory": self.supercategory(name)}
            for index, name in enumerate(names, start=1)
        ]


def _values(path: str | Path, key: str, values: object) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) < 2 or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f"{path}: '{key}' must list two or more names; found {values!r}")
    if len(set(values)) != len(values):
        raise ValueError(f"{path}: '{key}' names a value twice: {values!r}")
    return tuple(values)


@cache
def default_taxonomy() -> Taxonomy:
    """The taxonomy that comes with the package."""
    return Taxonomy.from_yaml(Path(__file__).with_name("taxonomy.yaml"))
