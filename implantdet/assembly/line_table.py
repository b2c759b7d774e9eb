"""How probable every value of every axis is for every product line: declared attributes, corrected by examples.

Letters: L product lines, V values of an axis. A whole-implant detection is read like one more axis, ``system``.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from implantdet.assembly.geometry import Array
from implantdet.phantom.lines import ProductLine
from implantdet.taxonomy import SYSTEM, Taxonomy

logger = logging.getLogger(__name__)

DECLARED_WEIGHT = 5.0  # a line's declared attributes count as much as so many examples
MISTAKE = 0.02  # probability that an attribute is not what the line's declaration says
UNIFORM_SHARE = 0.1  # of the prior: lets lines without examples take part


@dataclass(frozen=True)
class LineTable:
    """Product lines and what is known of them.

    Attributes:
        titles: [L] of the lines.
        systems: [L] the system of every line.
        values: axis → its values, ``system`` among the axes.
        likelihood: axis → [L, V] probability of a value, given the line.
        prior: [L].
        is_described: [L] whether anything is declared of a line, or was learned from examples.
    """

    titles: tuple[str, ...]
    systems: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]
    likelihood: Mapping[str, Array]
    prior: Array
    is_described: NDArray[np.bool_]


def build_table(
    lines: Sequence[ProductLine], taxonomy: Taxonomy, examples: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> LineTable:
    """Join declarations and examples.

    A system without a line in the list gets one of its own name, of which nothing is declared.

    Args:
        lines: with their declared attributes; each length counts alike.
        taxonomy: axes, values and systems.
        examples: title → axis → value → number of known implants, from ``count_examples``. Lines without any rest on
            their declaration, so that a new line takes part at once. Those of a title that the list lacks now count
            for how common the lines of its system are, all alike, and say nothing of their design.
    """
    titles = [line.title for line in lines]
    systems = [line.system for line in lines]
    declared = [_declared(line) for line in lines]
    for system in taxonomy.systems:
        if system not in systems:
            titles, systems, declared = [*titles, system], [*systems, system], [*declared, {}]
    likelihood = {}
    for axis, names in ((axis.key, axis.values) for axis in taxonomy.axes):
        rows = []
        for title, attributes in zip(titles, declared, strict=True):
            guess = np.array([attributes.get((axis, name), 0.0) for name in names])
            guess = guess if guess.sum() > 0 else np.full(len(names), 1 / len(names))
            guess = (1 - MISTAKE) * guess + MISTAKE / len(names)
            seen = np.array([examples.get(title, {}).get(axis, {}).get(name, 0.0) for name in names])
            rows.append((seen + DECLARED_WEIGHT * guess) / (seen.sum() + DECLARED_WEIGHT))
        likelihood[axis] = np.stack(rows)
    own = np.array([[system == name for name in taxonomy.systems] for system in systems])
    likelihood[SYSTEM] = (1 - MISTAKE) * own + MISTAKE / len(taxonomy.systems)
    count = _number_of_examples(titles, systems, examples)
    uniform = np.full(len(titles), 1 / len(titles))
    prior = (1 - UNIFORM_SHARE) * count / count.sum() + UNIFORM_SHARE * uniform if count.sum() else uniform
    seen_designs = [examples.get(title, {}).keys() - {SYSTEM} for title in titles]
    is_described = np.array([bool(known or seen) for known, seen in zip(declared, seen_designs, strict=True)])
    return LineTable(tuple(titles), tuple(systems), axis_values(taxonomy), likelihood, prior, is_described)


def _number_of_examples(
    titles: Sequence[str], systems: Sequence[str], examples: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Array:
    """[L] how many examples every line has."""
    count = np.zeros(len(titles))
    for title, of_line in examples.items():
        for system, number in of_line.get(SYSTEM, {}).items():
            names, wanted = (titles, title) if title in titles else (systems, system)
            heirs = np.array([name == wanted for name in names])
            count += number * heirs / max(heirs.sum(), 1)
    return count


def axis_values(taxonomy: Taxonomy) -> dict[str, tuple[str, ...]]:
    """Axis → its values, ``system`` last."""
    return {axis.key: axis.values for axis in taxonomy.axes} | {SYSTEM: taxonomy.systems}


def seen_values(examples: Mapping[str, Mapping[str, Mapping[str, float]]], taxonomy: Taxonomy) -> dict[str, set[str]]:
    """Axis → the values that examples have: a detector that was trained on them can say these."""
    return {
        axis: {value for value in values if any(of.get(axis, {}).get(value) for of in examples.values())}
        for axis, values in axis_values(taxonomy).items()
    }


def count_examples(
    table: LineTable, known: Iterable[tuple[Mapping[str, str], str | None, str | None]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Examples of every line: title → axis → value → count.

    An implant whose line is not known counts for the lines of its system, each as far as its attributes fit.

    Args:
        table: of declarations alone.
        known: values, system and product line of every known implant.
    """
    counts: dict[str, dict[str, dict[str, float]]] = {}
    systems = np.array(table.systems)
    for values, system, title in known:
        if title in table.titles:
            shares = {title: 1.0}
        elif system in table.systems:
            likelihood = np.where(systems == system, table.prior, 0)
            for axis, value in values.items():
                likelihood = likelihood * table.likelihood[axis][:, table.values[axis].index(value)]
            shares = dict(zip(table.titles, likelihood / likelihood.sum(), strict=True))
        else:
            continue
        for name, share in shares.items():
            if share > 0:
                line = counts.setdefault(name, {})
                for axis, said in {**values, SYSTEM: table.systems[table.titles.index(name)]}.items():
                    cell = line.setdefault(axis, {})
                    cell[said] = cell.get(said, 0.0) + float(share)
    return counts


def warn_of_unlisted(product_lines: Iterable[str | None], titles: Sequence[str]) -> None:
    """Log which annotated product lines are none of ``titles``, and how many implants have them."""
    unlisted = Counter(line for line in product_lines if line and line not in titles)
    if unlisted:
        logger.warning(
            "The 'product_line' of %d implants is none of the list (%s): nothing is learned of these lines, and no "
            "ranking of lines can be right about them. Expected a title, a system and a name such as '%s', or an entry "
            "in ASSEMBLY.LINES.",
            *(unlisted.total(), ", ".join(f"{line!r}: {count}" for line, count in unlisted.most_common(5)), titles[0]),
        )


def _declared(line: ProductLine) -> dict[tuple[str, str], float]:
    """(axis, value) → share of the line's sizes that have it."""
    sizes = list(itertools.product(line.lengths, line.diameters))
    counts = Counter(item for size in sizes for item in line.attributes(*size).items())
    return {item: count / len(sizes) for item, count in counts.items()}
