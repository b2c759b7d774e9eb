"""What the pages of this folder share: they are written from ``results/*.json``, and no number is typed by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _record import RESULTS
from tabulate import tabulate

EARLIER_GENERATOR = (
    "What was measured on the phantom at commits older than b3390f9 (27 November 2026) is of the phantom as it was "
    "then: some coronal thirds with one or two turns of thread counted as having none, and implants of unseen makers "
    "stood in the jaws of the known patients ([CHANGES](../CHANGES.md))."
)
EARLIER_PHANTOM = (
    f"{EARLIER_GENERATOR} At commits older than 7a60b1e (28 November 2026) what was found of an axis that an annotated "
    "third has no value of counted as false."
)


def read(name: str) -> dict[str, Any]:
    """The result of one benchmark."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run the benchmark that writes it first")
    return json.loads(path.read_text(encoding="utf-8"))


def source(result: dict[str, Any], name: str) -> str:
    """Where a section's numbers come from."""
    record = result["record"]
    state = " with uncommitted changes" if record["uncommitted_changes"] else ""
    hardware = record["hardware"]
    machine = ", ".join(
        [*hardware["gpus"], f"{hardware['cores']} cores of {hardware['cpu']}", f"{hardware['ram_gib']} GiB"]
    )
    return (
        f"[{name}.json](results/{name}.json): {record['date'][:10]}, `{record['command']}`, "
        f"commit {record['commit'][:9]}{state}, "
        f"{machine}, torch {record['versions']['torch']}."
    )


def short(commit: str) -> str:
    """What a page shows of a commit, or of those that a training ran at."""
    return " then ".join(part[:9] + ("-dirty" if part.endswith("-dirty") else "") for part in commit.split())


def table(rows: list[list[Any]], headers: list[str]) -> str:
    """A table in GitHub's Markdown."""
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def write_page(name: str, title: str, sections: Sequence[Sequence[str]], note: str = "") -> None:
    """Write ``<name>.md`` beside the scripts.

    Args:
        name: of the page.
        title: its heading.
        sections: paragraphs of every section, in Markdown.
        note: on the page as a whole.
    """
    intro = [f"# {title}", f"Written by `python benchmarks/{Path(sys.argv[0]).name}`; every number is from a file."]
    intro += [note] if note else []
    text = "\n\n".join(paragraph for section in [intro, *sections] for paragraph in section)
    page = Path(__file__).with_name(f"{name}.md")
    page.write_text(text + "\n", encoding="utf-8")
    print(page)
