"""Write a dataset folder of synthetic radiographs: the same seed gives the same bytes, whatever the number of workers.

Everything is written to ``.OUT.partial`` beside OUT, one patient at a time, and renamed when whole. A run that was
killed goes on where it stopped when it is started again with the same arguments.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from implantdet import __version__
from implantdet.data.folds import make_folds
from implantdet.data.idd import ANNOTATIONS, FOLDS, IMAGES, write_json
from implantdet.data.problems import DataError
from implantdet.phantom import panoramic, periapical
from implantdet.phantom.labels import annotate
from implantdet.phantom.lines import default_lines
from implantdet.phantom.presets import PRESETS, Job, Preset, plan
from implantdet.phantom.render import Radiograph, render
from implantdet.phantom.scene import Patient, View
from implantdet.taxonomy import default_taxonomy

RECORDS = "records"
ARGUMENTS = "phantom.json"  # what a phantom was made with
GENERATOR = 2  # one more whenever the same arguments begin to give other images or annotations


def generate(
    out: str | Path,
    images: int | None = None,
    patients: int | None = None,
    seed: int = 0,
    workers: int = 1,
    preset: str = "idd",
) -> Path:
    """Make a dataset folder.

    Args:
        out: folder to make; must not exist.
        images: number of images; None takes the preset's.
        patients: number of patients; None follows from the images.
        seed: of everything random, 0 or more.
        workers: processes.
        preset: name in :data:`implantdet.phantom.presets.PRESETS`.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists, or an interrupted run of other arguments.
        DataError: an argument is out of range.
    """
    out = Path(out)
    if preset not in PRESETS:
        raise DataError(f"preset {preset!r}: expected one of {', '.join(PRESETS)}")
    if workers < 1 or seed < 0:
        raise DataError(f"workers {workers}, seed {seed}: expected at least 1 worker and a seed of 0 or more")
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists: name a folder that does not, or remove it; nothing is overwritten")
    settings = PRESETS[preset]
    images = settings.images if images is None else images
    if patients is None:
        patients = min(images, max(5, round(images / settings.images_per_patient)))
    jobs = plan(settings, images, patients, seed)
    partial = _prepare(
        out,
        {"version": __version__, "generator": GENERATOR, "preset": preset}
        | {"images": images, "patients": patients, "seed": seed, "vocabulary": _vocabulary()},
    )
    _render_all(
        partial, [job for job in jobs if not _record(partial, job.patient).exists()], jobs, settings, seed, workers
    )
    _finish(partial, jobs, seed)
    partial.rename(out)
    return out


def _prepare(out: Path, arguments: dict[str, Any]) -> Path:
    """The folder to work in: an interrupted one of the same arguments, or a new one.

    Raises:
        FileExistsError: an interrupted one was begun with others.
    """
    partial = out.parent / f".{out.name}.partial"
    if (partial / ARGUMENTS).exists():
        begun = json.loads((partial / ARGUMENTS).read_text(encoding="utf-8"))
        others = {key: begun.get(key) for key, value in arguments.items() if begun.get(key) != value}
        if others:
            found, asked = (", ".join(f"{key} {of[key]!r}" for key in others) for of in (others, arguments))
            raise FileExistsError(
                f"{partial} holds an interrupted phantom that was begun with {found}; expected {asked}. Give the same "
                "arguments, or remove the folder"
            )
    (partial / IMAGES).mkdir(parents=True, exist_ok=True)
    (partial / RECORDS).mkdir(exist_ok=True)
    write_json(partial / ARGUMENTS, arguments)
    return partial


def _vocabulary() -> str:
    """What tells the product lines and the taxonomy from others: numbers of categories hang on them."""
    return hashlib.sha256(repr((default_lines(), default_taxonomy())).encode()).hexdigest()[:12]


def _record(partial: Path, patient: int) -> Path:
    return partial / RECORDS / f"{patient:06d}.json"


def _render_all(partial: Path, todo: list[Job], jobs: list[Job], preset: Preset, seed: int, workers: int) -> None:
    total = sum(job.images for job in jobs)
    done = total - sum(job.images for job in todo)
    with tqdm(total=total, initial=done, unit=" images", desc="radiographs", smoothing=0.05) as bar:
        for count in _run(partial, todo, preset, seed, workers):
            bar.update(count)


def _run(partial: Path, todo: list[Job], preset: Preset, seed: int, workers: int) -> Iterator[int]:
    if workers == 1:
        with _one_thread():
            for job in todo:
                yield write_patient(partial, job, preset, seed)
        return
    # Workers are forked from a server that has imported this module once: a fresh import in each takes seconds.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"  # Windows
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = [pool.submit(write_patient, partial, job, preset, seed) for job in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV on one thread, as in the workers, and back."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _start_worker() -> None:
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A killed parent cannot stop its workers: they watch it.
        threading.Thread(target=_exit_after, args=(parent.sentinel,), daemon=True).start()


def _exit_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def sample_patient(job: Job, preset: Preset, seed: int) -> Patient:
    """The anatomy of a patient."""
    rng = np.random.default_rng([seed, preset.stream + 1, job.patient])
    return (panoramic if job.panoramic else periapical).sample_patient(rng, job.lines)


def radiographs(job: Job, preset: Preset, seed: int) -> Iterable[tuple[Patient, View, Radiograph]]:
    """All images of one patient."""
    patient = sample_patient(job, preset, seed)
    for index in range(job.images):
        rng = np.random.default_rng([seed, preset.stream + 2, job.patient, index])
        if job.panoramic:
            view = panoramic.sample_view(rng, patient, preset.panoramic_size)
        else:
            view = periapical.sample_view(rng, patient, preset.size)
        yield patient, view, render(patient, view, rng)


def write_patient(partial: Path, job: Job, preset: Preset, seed: int) -> int:
    """Write the images of one patient and then its record; returns the number of images."""
    category_ids = {category["name"]: category["id"] for category in default_taxonomy().coco_categories()}
    entries = []
    for index, (patient, view, radiograph) in enumerate(radiographs(job, preset, seed)):
        name = f"patient{job.patient:05d}_{index}.jpg"
        if not cv2.imwrite(str(partial / IMAGES / name), radiograph.image, [cv2.IMWRITE_JPEG_QUALITY, view.quality]):
            raise OSError(f"{partial / IMAGES / name}: could not be written; is the disk full?")
        image = {
            "file_name": name,
            "width": view.size[1],
            "height": view.size[0],
            "patient_id": f"patient{job.patient:05d}",
            "modality": patient.modality,
            "mm_per_pixel_matrix": np.linalg.inv(view.matrix[:, :2]).round(8).tolist(),
        }
        if view.scale[1] / view.scale[0] < 1.001:  # one number measures only where pixels are square
            image["mm_per_pixel"] = round(view.scale[0], 7)
        entries.append(
            {
                "image": image,
                "annotations": annotate(radiograph, view, list(range(len(patient.implants))), category_ids),
            }
        )
    write_json(_record(partial, job.patient), entries)
    return len(entries)


def _finish(partial: Path, jobs: list[Job], seed: int) -> None:
    """Join the records, number everything, make the folds."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    implants: dict[tuple[int, int], int] = {}
    for job in jobs:
        for entry in json.loads(_record(partial, job.patient).read_text(encoding="utf-8")):
            image_id = len(images) + 1
            images.append({"id": image_id, **entry["image"]})
            for annotation in entry["annotations"]:
                # An implant has one number per image: the parts of one picture are grouped, not those of a patient.
                key = (image_id, annotation["implant_id"])
                annotation["implant_id"] = implants.setdefault(key, len(implants) + 1)
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
    content = {"images": images, "annotations": annotations, "categories": default_taxonomy().coco_categories()}
    write_json(partial / ANNOTATIONS, content)
    write_json(partial / FOLDS, make_folds(content, seed=seed))
    shutil.rmtree(partial / RECORDS)
