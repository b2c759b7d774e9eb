"""What ``implantdet phantom`` can make: named mixtures of systems, modalities and sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from implantdet.data.problems import DataError
from implantdet.phantom.arrays import Array
from implantdet.phantom.lines import ProductLine, default_lines

MIN_PATIENTS = 5  # a test set and four folds


@dataclass(frozen=True)
class Preset:
    """A mixture.

    Attributes:
        images: default number of images.
        images_per_patient: on average; decides the default number of patients.
        size: height and width of periapical images, in pixels.
        panoramic_size: height and width of panoramic images.
        panoramic: share of patients with panoramics.
        systems: system → relative number of images.
        stream: of random numbers; presets that share it show the same patients, with other implants, for one seed.
    """

    images: int
    images_per_patient: float
    size: int
    panoramic_size: tuple[int, int]
    panoramic: float
    systems: dict[str, int]
    stream: int = 0


IDD_SYSTEMS = {"Bicon": 1135, "ITI": 794, "Bego": 146}  # counts seen elsewhere for these three systems
PRESETS = {
    "idd": Preset(5572, 4.0, 416, (416, 416), 0.12, IDD_SYSTEMS),
    "mini": Preset(240, 4.0, 320, (320, 320), 0.1, {"Bicon": 1, "ITI": 1, "Bego": 1}),
    "panoramic": Preset(200, 2.0, 416, (720, 1440), 1.0, IDD_SYSTEMS),
    "unseen": Preset(400, 4.0, 416, (416, 416), 0.12, {"other": 1}, stream=10),  # for tests beside idd
}


@dataclass(frozen=True)
class Job:
    """One patient: a random stream of its own, a system, a modality and a number of images."""

    patient: int
    system: str
    panoramic: bool
    images: int

    @property
    def lines(self) -> tuple[ProductLine, ...]:
        """Product lines of the patient's system."""
        return tuple(line for line in default_lines() if line.system == self.system)


def plan(preset: Preset, images: int, patients: int, seed: int) -> list[Job]:
    """Share images and patients among systems and modalities, exactly up to rounding.

    Raises:
        DataError: fewer patients than a test set and four folds need, or fewer images than patients.
    """
    if not MIN_PATIENTS <= patients <= images:
        raise DataError(
            f"{patients} patients and {images} images: expected at least {MIN_PATIENTS} patients (a test set and four "
            "folds) and at least one image of each"
        )
    rng = np.random.default_rng([seed, 0])
    shares = np.array(list(preset.systems.values()), float)
    image_quota, patient_quota = _quota(images, shares), _quota(patients, shares)
    jobs = []
    for system, num_images, num_patients in zip(preset.systems, image_quota, patient_quota, strict=True):
        num_patients = max(1, min(num_patients, num_images)) if num_images else 0
        sizes = 1 + rng.multinomial(num_images - num_patients, np.full(max(num_patients, 1), 1 / max(num_patients, 1)))
        for index in range(num_patients):
            # Spread evenly, so that small plans hold panoramics of every system too.
            panoramic = int((index + 1) * preset.panoramic) > int(index * preset.panoramic)
            jobs.append((system, panoramic, int(sizes[index])))
    order = rng.permutation(len(jobs))
    return [Job(number, *jobs[index]) for number, index in enumerate(order)]


def _quota(total: int, shares: Array) -> list[int]:
    """Whole numbers in proportion to the shares that add up to the total (largest remainders)."""
    exact = total * shares / shares.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return [int(count) for count in counts]
