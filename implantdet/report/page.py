"""What was found in many radiographs as one page for a browser: each picture, and what its implants may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from implantdet.data.files import written_whole
from implantdet.report.implant_overlay import SHOWN, inferred_thirds, length_of, percent, reasons_of, sure_enough

PAGE = "index.html"
_COLUMNS = ("No.", "May be", "Product lines", "For and against", "Length in the image", "Score")
_NOTICE = (
    "A hint for a dentist, not a diagnosis, by research software that nobody has validated clinically. It misses "
    "implants, and takes other things for implants. They are compared with the listed makers alone: an implant of "
    "another maker mostly gets a listed name, without a warning. Order no part by this page."
)
_WORDS = {
    "No.": "the number in the picture",
    "May be": "how the listed makers compare; <i>other</i>: the listed lines of makers without a class of their own",
    "set": "the names that the calibration does not rule out",
    "For and against": "the features of design that were read, and how sure the detector is of each",
    "Length in the image": "that of the shadow, which is larger than the implant; only where the scale is known",
    "Score": "how sure it is that there is an implant; <i>inferred</i> thirds were not seen, but placed by the others",
}
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
dt { font-weight: bold; }
td p { margin: 0 0 .3rem; }
ul { list-style: none; margin: 0; padding: 0; } li { padding: 0 .2rem; } td li { white-space: nowrap; }
td:nth-child(5) { white-space: nowrap; }
.share { background: linear-gradient(to right, var(--bar) var(--part), transparent var(--part)); }
@media print { h2 { break-before: page; } }
"""


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page of an ``implants.json`` of ``implantdet predict``, under a temporary name until it is whole.

    Args:
        path: of the page, in the folder of the pictures.
        content: of ``implants.json``: implants of a score from its ``min_score`` on are told, as they are drawn; and
            the radiographs that were ``left_out``.
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
            _left_out(content["left_out"]),
            f"<details><summary>What the words mean</summary>\n<dl>{_glossary()}</dl>\n</details>",
            *(_section(image, content["min_score"]) for image in images),
            "</body>\n</html>\n",
        ]
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _left_out(images: Sequence[Mapping[str, str]]) -> str:
    if not images:
        return ""
    items = "".join(f"<li>{escape(image['file_name'])}: {escape(image['reason'])}</li>" for image in images)
    return f'<div class="notice"><b>Could not be looked at</b><ul>{items}</ul></div>'


def _glossary() -> str:
    return "".join(f"<dt>{word}</dt><dd>{meaning}</dd>" for word, meaning in _WORDS.items())


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
    if mm_per_pixel is None:
        return None
    steps = [mm_per_pixel] if isinstance(mm_per_pixel, float | int) else [mm_per_pixel[0][0], mm_per_pixel[1][1]]
    return " × ".join(f"{step:.3g}" for step in steps) + " mm per pixel"


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
        if reasons := reasons_of(ranking, sign):
            said += f"<p><b>{word}</b> {escape(', '.join(reasons))}</p>"
    return said or ("its design could not be read" if ranking["fit"] is None else "")
