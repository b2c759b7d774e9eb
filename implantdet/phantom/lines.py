"""Product lines of implants, read from ``lines.yaml``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from implantdet.taxonomy import Taxonomy, default_taxonomy

MARKS = ("s", "m", "a")  # sourced, recalled, assumed
SEEN_TURNS = 0.75  # of a thread, from which a third has one


@dataclass(frozen=True)
class ProductLine:
    """One family of implants; ``lines.yaml`` explains the fields. Lengths in millimetres.

    Attributes:
        sources: field name → ``s``, ``m`` or ``a``.
    """

    name: str
    system: str
    level: str
    diameters: tuple[float, ...]
    lengths: tuple[float, ...]
    collar: tuple[float, float | list[float]]
    platform: float
    taper: tuple[float, float, float]
    thread: tuple[str, float | list[float], float, int]
    thread_from: float
    microthread: tuple[float, float]
    bore: tuple[float, float, float]
    grooves: int
    hole: str
    apex: tuple[str, float]
    ring: tuple[float, float]
    sources: dict[str, str]

    @property
    def title(self) -> str:
        """System and line, such as ``ITI BLT``; a line that is named like its system stands alone."""
        return self.name if self.name == self.system else f"{self.system} {self.name}"

    def pitch(self, diameter: float) -> float:
        """From crest to crest of the thread, on an implant of this diameter."""
        return self._at(self.thread[1], diameter)

    def platform_ratio(self, diameter: float) -> float:
        """Diameter of the platform relative to that of the body."""
        return self._at(self.collar[1], diameter)

    def _at(self, values: float | list[float], diameter: float) -> float:
        """The value for the nearest of the line's diameters."""
        if not isinstance(values, list):
            return values
        return min(zip(self.diameters, values, strict=True), key=lambda item: abs(item[0] - diameter))[1]

    def turns(self, third: str, length: float, diameter: float) -> float:
        """How many pitches of the thread lie in the coronal or the middle third; a collar may leave none there."""
        start, end = {"coronal": (0.0, length / 3), "middle": (length / 3, 2 * length / 3)}[third]
        return max(0.0, end - max(start, self.thread_from)) / self.pitch(diameter)

    def attributes(self, length: float, diameter: float) -> dict[str, str]:
        """Value of every axis of the taxonomy for an implant of this size, by ``<third>.<axis>``."""
        has_thread = self.turns("coronal", length, diameter) >= SEEN_TURNS
        return {
            "coronal.level": self.level,
            "coronal.microthread": "present" if self.microthread[0] > 0 else "absent",
            "coronal.thread": self.thread[0] if has_thread else "none",
            "middle.body": self._body(1 / 3),
            "middle.thread": self.thread[0],
            "apical.groove": "present" if self.grooves else "absent",
            "apical.hole": self.hole,
            "apical.body": self._body(2 / 3),
            "apical.apex": self.apex[0],
        }

    def _body(self, start: float) -> str:
        """``tapered`` where the third that starts here loses more than 6 % of the diameter (about 2° per side)."""
        share, low, high = self.taper
        lost = share * max(0.0, min(high, start + 1 / 3) - max(low, start)) / (high - low)
        return "tapered" if lost > 0.06 else "straight"


def load_lines(path: str | Path, taxonomy: Taxonomy | None = None) -> tuple[ProductLine, ...]:
    """Read and check product lines.

    Raises:
        ValueError: a field is missing, unknown, unmarked or outside its range; the message names file, line and field.
            Or the file is missing, or no YAML.
    """
    taxonomy = taxonomy or default_taxonomy()
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"{path}: no such file of product lines; start from a copy of {Path(__file__).with_name('lines.yaml')}"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: expected YAML; {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("lines"), list) or not content["lines"]:
        raise ValueError(f"{path}: expected a non-empty list under the key 'lines'")
    lines = tuple(_line(f"{path}: lines[{index}]", entry, taxonomy) for index, entry in enumerate(content["lines"]))
    titles = [line.title for line in lines]
    for title in titles:
        if titles.count(title) > 1:
            raise ValueError(f"{path}: the line {title!r} stands twice")
    return lines


@cache
def default_lines() -> tuple[ProductLine, ...]:
    """The product lines that come with the package."""
    return load_lines(Path(__file__).with_name("lines.yaml"))


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _numbers(*ranges: tuple[float, float]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(ranges)
        and all(_number(*r)(v) for r, v in zip(ranges, value, strict=True))
    )


def _one_or_each(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: _number(low, high)(value) or _sizes(low, high)(value)


def _sizes(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and bool(value) and all(_number(low, high)(v) for v in value)


def _rules(taxonomy: Taxonomy) -> dict[str, tuple[Callable[[Any], bool], str]]:
    """Field → test of its value, and what the value should be."""
    values = {axis.key: axis.values for axis in taxonomy.axes}
    shapes, holes, apices = values["middle.thread"], values["apical.hole"], values["apical.apex"]
    return {
        "level": (lambda v: v in values["coronal.level"], f"one of {values['coronal.level']}"),
        "diameters": (_sizes(2, 8), "a list of millimetres in [2, 8]"),
        "lengths": (_sizes(4, 20), "a list of millimetres in [4, 20]"),
        "collar": (
            lambda v: isinstance(v, list) and len(v) == 2 and _number(0, 4)(v[0]) and _one_or_each(0.5, 1.6)(v[1]),
            "[height in [0, 4], relative diameter (one, or one for each diameter) in [0.5, 1.6]]",
        ),
        "platform": (_number(0.4, 1.2), "a ratio in [0.4, 1.2]"),
        "taper": (
            lambda v: _numbers((0, 0.6), (0, 1), (0, 1))(v) and v[1] < v[2],
            "[share in [0, 0.6], start, end] with 0 <= start < end <= 1",
        ),
        "thread": (
            lambda v: (
                isinstance(v, list)
                and len(v) == 4
                and v[0] in shapes
                and _one_or_each(0.3, 3)(v[1])
                and _numbers((0.05, 1.5), (0, 4))(v[2:])
            ),
            f"[one of {shapes}, pitch (one, or one for each diameter) in [0.3, 3], depth in [0.05, 1.5], "
            "leads in [0, 4]]",
        ),
        "thread_from": (_number(0, 8), "millimetres in [0, 8]"),
        "microthread": (_numbers((0, 5), (0, 0.6)), "[height in [0, 5], pitch in [0, 0.6]]"),
        "bore": (_numbers((0, 2), (0, 0.8), (0, 30)), "[radius in [0, 2], depth in [0, 0.8], half angle in [0, 30]]"),
        "grooves": (lambda v: _number(0, 6)(v) and isinstance(v, int), "a whole number in [0, 6]"),
        "hole": (lambda v: v in holes, f"one of {holes}"),
        "apex": (
            lambda v: isinstance(v, list) and len(v) == 2 and v[0] in apices and _number(0.05, 1.5)(v[1]),
            f"[one of {apices}, relative height in [0.05, 1.5]]",
        ),
        "ring": (_numbers((0, 1), (0, 2)), "[position in [0, 1], height in [0, 2]]"),
    }


def _line(where: str, entry: Any, taxonomy: Taxonomy) -> ProductLine:
    rules = _rules(taxonomy)
    expected = {"name", "system", *rules}
    if not isinstance(entry, dict) or set(entry) != expected:
        found = set(entry) if isinstance(entry, dict) else set()
        raise ValueError(f"{where}: missing {sorted(expected - found)}, unknown {sorted(map(str, found - expected))}")
    where = f"{where} ({entry['name']})"
    if not isinstance(entry["name"], str):
        raise ValueError(f"{where}: 'name' must be text; found {entry['name']!r}, which quotation marks make text")
    if entry["system"] not in taxonomy.systems:
        raise ValueError(f"{where}: 'system' must be one of {taxonomy.systems}; found {entry['system']!r}")
    fields: dict[str, Any] = {}
    for key, (valid, expectation) in rules.items():
        marked = entry[key]
        if not isinstance(marked, list) or len(marked) != 2 or marked[1] not in MARKS:
            raise ValueError(f"{where}: '{key}' must be [value, source], source one of {MARKS}; found {marked!r}")
        if not valid(marked[0]):
            raise ValueError(f"{where}: '{key}' must be {expectation}; found {marked[0]!r}")
        fields[key] = tuple(marked[0]) if isinstance(marked[0], list) else marked[0]
    for key in ("collar", "thread"):
        if isinstance(fields[key][1], list) and len(fields[key][1]) != len(fields["diameters"]):
            raise ValueError(
                f"{where}: '{key}' has {len(fields[key][1])} values for {len(fields['diameters'])} diameters; "
                "expected one, or one for each"
            )
    return ProductLine(entry["name"], entry["system"], **fields, sources={key: entry[key][1] for key in rules})
