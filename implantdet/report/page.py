"""What was found in many radiographs as one page for a browser: each picture, and what its implants may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from implantdet.data.files import written_whole
from implantdet.report.implant_overlay import SHOWN, in_words, inferred_thirds, length_of, percent, sure_enough
from implantdet.taxonomy import SYSTEM

PAGE = "index.html"
_COLUMNS = ("No.", "May be", "Product lines", "For and against", "Length", "Score")
_NOTICE = (
    "A hint for a dentist, not a diagnosis. Implants are compared with the listed makers alone: a probability says how "
    "these compare, not that the implant is of one of them. A set holds the true name, if it is listed, as often as "
    "the model was calibrated to (ASSEMBLY.COVERAGE, nine times of ten)."
)
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --bar: #d55e0055; }
body { font: 16px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
.notice { border-left: .3rem solid #d55e00; padding: .3rem .8rem; }
.known { opacity: .75; font-size: .9rem; }
img { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin-top: .6rem; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
td p { margin: 0 0 .3rem; }
ul { list-style: none; margin: 0; padding: 0; } li { padding: 0 .2rem; white-space: nowrap; }
td:nth-child(5) { white-space: nowrap; }
.share { background: linear-gradient(to right, var(--bar) var(--part), transparent var(--part)); }
@media print { h2 { break-before: page; } }
"""


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of an ``implants.json`` of ``implantdet predict``, under a temporary name until it is whole.

    Args:
        path: of the page, in the folder of the pictures.
        content: of ``implants.json``: implants of a score from its ``min_score`` on are told, as they are drawn.
    """
    images = content["images"]
    many = f"{len(images)} radiograph{'' if len(images) == 1 else 's'}"
    about = f"Looked at by {content['model']}; implants of a score of {content['min_score']:.0%} or more."
    page = "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Implants in {many}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f'<h1>Implants in {many}</h1>\n<p class="notice">{_NOTICE}</p>\n<p class="known">{escape(about)}</p>',
            *(_section(image, content["min_score"]) for image in images),
            "</body>\n</html>\n",
        ]
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _section(image: Mapping[str, Any], min_score: float) -> str:
    shown, title = sure_enough(image["implants"], min_score)
    known = [image["modality"], _scale(image["mm_per_pixel"]), title]
    rows = [_row(implant) for implant in sorted(shown, key=lambda implant: implant["number"])]
    picture = escape(quote(image["picture"]))
    return "\n".join(
        [
            f"<section>\n<h2>{escape(image['file_name'])}</h2>",
            f'<p class="known">{escape(" · ".join(filter(None, known)))}</p>',
            f'<a href="{picture}"><img src="{picture}" alt="The radiograph, plain and with what was found"'
            ' loading="lazy"></a>',
            *([_table(rows)] if rows else []),
            "</section>",
        ]
    )


def _scale(mm_per_pixel: float | Sequence[Sequence[float]] | None) -> str | None:
    return None if mm_per_pixel is None else f"{mm_per_pixel} mm per pixel"


def _table(rows: Sequence[str]) -> str:
    head = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _row(implant: Mapping[str, Any]) -> str:
    ranking = implant["ranking"]
    inferred = ", ".join(inferred_thirds(implant))
    cells = [
        str(implant["number"]),
        *((_systems(ranking), _lines(ranking), _evidence(ranking)) if ranking else ("", "", "")),
        length_of(implant),
        escape(percent(implant["score"])) + (f'<p class="known">inferred: {inferred}</p>' if inferred else ""),
    ]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _systems(ranking: Mapping[str, Any]) -> str:
    said = ""
    if ranking["unknown"]:
        said = "<b>unknown</b>, of the listed ones most like"
    elif ranking["unknown"] is None and ranking["fit"] is not None:
        said = "whether unknown: not judged"
    return said + _candidates(ranking["systems"]) + _set(ranking["system_set"])


def _lines(ranking: Mapping[str, Any]) -> str:
    if ranking["line_set"] is None:
        return ""  # nobody has looked how right these probabilities are
    return _candidates(ranking["lines"]) + _set(ranking["line_set"])


def _candidates(candidates: Sequence[Mapping[str, Any]]) -> str:
    items = [
        f'<li class="share" style="--part: {100 * candidate["probability"]:.0f}%">'
        f"{escape(candidate['name'])} {escape(percent(candidate['probability']))}</li>"
        for candidate in candidates
        if candidate["probability"] >= SHOWN
    ]
    return f"<ul>{''.join(items)}</ul>"


def _set(names: Sequence[str] | None) -> str:
    return f'<p class="known">set: {escape(", ".join(names))}</p>' if names else ""


def _evidence(ranking: Mapping[str, Any]) -> str:
    """All that speaks for and against the most probable system, the weightiest first."""
    said = ""
    for word, sign in (("for", 1), ("against", -1)):
        reasons = [
            reason
            for reason in sorted(ranking["systems"][0]["evidence"], key=lambda reason: -abs(reason["weight"]))
            if sign * reason["weight"] > 0 and reason["axis"] != SYSTEM
        ]
        if reasons:
            said += f"<p><b>{word}</b> {escape(', '.join(map(in_words, reasons)))}</p>"
    return said or "its design could not be read"
