"""What is wrong with input data: collected one by one, shown together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 20  # lines in the message of an exception; the commands print every line


@dataclass(frozen=True)
class Problem:
    """One thing in the input that cannot be used.

    Attributes:
        file: the file it stands in.
        record: line, record or field within the file; empty if the whole file is meant.
        reason: what was found and what was expected.
    """

    file: str
    record: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.record}: {self.reason}" if self.record else f"{self.file}: {self.reason}"


class DataError(ValueError):
    """Input data cannot be used.

    Attributes:
        message: what cannot be used, in one line.
        problems: every problem; the text of the exception shows the first of them.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        lines = [message, *(f"  {problem}" for problem in problems[:_SHOWN])]
        if len(problems) > _SHOWN:
            lines.append(f"  … and {len(problems) - _SHOWN} more")
        super().__init__("\n".join(lines))
        self.message = message
        self.problems = tuple(problems)
