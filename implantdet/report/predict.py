"""Radiographs without annotations to pictures, a page and ``implants.json``: what is found, by a trained model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from implantdet.data.dicom import header_of
from implantdet.data.idd import read_json, write_json
from implantdet.data.images import SUFFIXES, find_radiographs, modality_by_shape, read_radiograph, to_float
from implantdet.data.problems import DataError, Problem
from implantdet.engine.predictor import ImplantPredictor
from implantdet.engine.second_stage import ASSEMBLER
from implantdet.evaluation.implant_results import implants_of
from implantdet.report.close_ups import add_close_ups
from implantdet.report.implant_overlay import draw_implants, sure_enough
from implantdet.report.overlay import COLUMN, open_panel, save_picture, side_by_side
from implantdet.report.page import PAGE, write_page

IMPLANTS = "implants.json"
SAVED_EVERY = 20  # radiographs


def predict_radiographs(
    run_dir: str | Path,
    images: Sequence[str | Path],
    out: str | Path,
    min_score: float = 0.3,
    mm_per_pixel: float | None = None,
    lines: str | Path | None = None,
    modality: str | None = None,
    resume: bool = False,
) -> int:
    """Write a picture per radiograph and, of all of them, ``implants.json`` and a page for a browser, ``index.html``.

    What is finished when the run is interrupted stays, with an ``implants.json`` of its own, and ``resume`` goes on.

    Args:
        run_dir: ``OUTPUT_DIR`` of a training that ended with a second stage.
        images: files, and folders, of which every image is taken with those in subfolders.
        out: folder that is created; it must not be there, or be empty, unless ``resume``.
        min_score: implants below it are left out of the pictures; the file has them all.
        mm_per_pixel: scale of the radiographs, if it is known and one for all; None: each has its DICOM header's.
        lines: file of product lines, as for ``ImplantPredictor``.
        modality: of all the radiographs, as for ``ImplantPredictor``; None: each has its DICOM header's,
            or is panoramic if its shape says so.
        resume: ``out`` may have radiographs of an earlier run with the same arguments: they are not looked at again.

    Returns:
        The number of radiographs in ``out``.

    Raises:
        DataError: there is no image, ``out`` cannot be used, or the model cannot; or, after all others are done, images
            could not be read.
    """
    out = Path(out)
    names = _names(images, out, resume)
    settings = {
        "model": str(run_dir),
        "model_digest": _digest_of(Path(run_dir)),
        "lines": lines and str(lines),
        "min_score": min_score,
        "mm_per_pixel": mm_per_pixel,
        "modality": modality,
    }
    written = _written(out / IMPLANTS, settings, names)
    try:
        predictor = ImplantPredictor(run_dir, lines=lines)
    except ValueError as error:
        raise DataError(str(error)) from error
    problems: list[Problem] = []

    def save() -> None:
        if written:
            in_order = sorted(written, key=lambda image: places[image["picture"]])
            left_out = [{"file_name": problem.file, "reason": problem.reason} for problem in problems]
            content = {**settings, "images": in_order, "left_out": left_out}
            write_json(out / IMPLANTS, content)
            write_page(out / PAGE, content)

    places = {f"{name}.png": place for place, name in enumerate(names)}
    is_done = {image["file_name"] for image in written}
    left = [(name, path) for name, path in names.items() if str(path) not in is_done]
    try:
        for name, path in tqdm(left, desc="predict", unit="image"):
            try:
                levels = read_radiograph(path)
                scale, kind = header_of(path)
                scale, kind = mm_per_pixel or scale, modality or kind or modality_by_shape(levels.shape)
                assembly = predictor(levels, scale, kind)
                implants = implants_of(assembly, min_score)
                picture = _picture(levels, implants, name, min_score)
            # The last two: of images that are a thousand times as long as wide.
            except (DataError, ValueError, Image.DecompressionBombError) as error:
                problems.append(Problem(str(path), "", str(error).removeprefix(f"{path}: ")))
                continue
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                reason = "the GPU has too little memory for it; with CUDA_VISIBLE_DEVICES= in front, the CPU is taken"
                problems.append(Problem(str(path), "", reason))
                continue
            out.mkdir(parents=True, exist_ok=True)
            save_picture(picture, out / f"{name}.png")
            taken_as = {"modality": kind, "mm_per_pixel": scale}
            written.append({"file_name": str(path), "picture": f"{name}.png", **taken_as, "implants": implants})
            if len(written) % SAVED_EVERY == 0:
                save()  # what nobody can catch, such as a power cut, loses no more than that
    finally:
        save()
    if problems:
        others = f"; {out} has the other {len(written)}" if written else ""
        raise DataError(f"{len(problems)} of {len(names)} images cannot be used{others}", problems)
    return len(written)


def _digest_of(run_dir: Path) -> str | None:
    """What tells a calibrated training from others in the same folder; None if there is none."""
    path = run_dir / ASSEMBLER
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else None


def _written(path: Path, settings: dict[str, Any], names: Mapping[str, Path]) -> list[dict[str, Any]]:
    """What an earlier run has written of the radiographs; nothing if there was none."""
    if not path.exists():
        return []
    content = read_json(path)
    earlier = {key: content.get(key) for key in settings} if isinstance(content, dict) else {}
    for key, value in settings.items():
        if earlier.get(key) != value:
            raise DataError(
                f"{path}: was written with {key} {earlier.get(key)!r}, found {value!r}; expected the arguments of the "
                "run that is resumed. Give them, or choose another --out"
            )
    images: list[dict[str, Any]] = content["images"]
    for image in images:
        name = image["picture"].removesuffix(".png")
        if str(names.get(name)) != image["file_name"]:
            raise DataError(
                f"{path}: has the picture {image['picture']} of {image['file_name']}, but of the images given none is "
                "called so; expected those of the run that is resumed. Give them, or choose another --out"
            )
    return images


def _names(images: Sequence[str | Path], out: Path, resume: bool) -> dict[str, Path]:
    """A name of its own for every image, in order: that of its file, behind its folders where several have the same."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not (resume and (out / IMPLANTS).is_file()):
        raise DataError(
            f"{out}: is there and not empty; expected a new folder, or with --resume one with the {IMPLANTS} of an "
            "interrupted run. Remove it, or choose another --out"
        )
    paths: dict[Path, Path] = {}  # by what they lead to: no image is taken twice
    for given in map(Path, images):
        if not given.exists():
            raise DataError(f"{given}: no such file or folder; expected radiographs, or folders of them")
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise DataError(f"{out}: lies in {given}, whose images are taken; pictures need a folder elsewhere")
        for path in [given] if given.is_file() else find_radiographs(given):
            paths.setdefault(path.resolve(), path)
    for path in paths.values():
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{str(path)!r}: a name that is no UTF-8; rename it") from error
    alike: dict[str, list[Path]] = {}
    for path in paths.values():
        alike.setdefault(_stem(path).casefold(), []).append(path)  # some systems do not tell A from a
    told_apart = {path: name for group in alike.values() for path, name in zip(group, _names_of(group), strict=True)}
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for path in paths.values():
        name = told_apart[path]
        unique, number = name, 2
        while unique.casefold() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.casefold())
        names[unique] = path
    return names


def _names_of(group: Sequence[Path]) -> list[str]:
    """Names of files that are called alike, behind as many of their folders as tell them apart, if folders do."""
    folders = [path.resolve().parent.parts[1:] for path in group]
    for depth in range(max(map(len, folders)) + 1):
        names = [
            "_".join([*own[max(0, len(own) - depth) :], _stem(path)]) for own, path in zip(folders, group, strict=True)
        ]
        if len({name.casefold() for name in names}) == len(group):
            return names
    return [_stem(path) for path in group]


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in SUFFIXES else path.name  # DICOM files may be named 1.2.840.1


def _picture(levels: np.ndarray, implants: Sequence[dict[str, Any]], name: str, min_score: float) -> Image.Image:
    """The radiograph as it is and, to its right, with its implants; under them, these enlarged if they are small."""
    radiograph = to_float(levels).round().astype("uint8")
    plain, _ = open_panel(radiograph, name)
    shown, title = sure_enough(implants, min_score)
    drawn = draw_implants(radiograph, shown, title)
    picture = side_by_side([plain.crop((0, 0, plain.width - COLUMN, plain.height)), drawn])
    return add_close_ups(picture, radiograph, shown)
