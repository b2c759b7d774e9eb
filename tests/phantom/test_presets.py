"""How images and patients are shared out."""

from collections import Counter

import pytest

from implantdet.data.problems import DataError
from implantdet.phantom.presets import PRESETS, plan


def images_by_system(jobs):
    counts = Counter()
    for job in jobs:
        counts[job.system] += job.images
    return counts


def test_idd_has_its_images_and_shares():
    preset = PRESETS["idd"]
    jobs = plan(preset, preset.images, 1393, seed=0)
    counts = images_by_system(jobs)
    assert sum(counts.values()) == 5572
    assert len(jobs) == 1393
    # 1135 : 794 : 146 of 2075
    assert counts == {"Bicon": 3048, "ITI": 2132, "Bego": 392}


def test_every_patient_has_an_image_and_a_number_of_its_own():
    jobs = plan(PRESETS["mini"], 60, 20, seed=3)
    assert [job.patient for job in jobs] == list(range(20))
    assert min(job.images for job in jobs) >= 1
    assert sum(job.images for job in jobs) == 60


def test_share_of_panoramics():
    jobs = plan(PRESETS["idd"], 4000, 1000, seed=1)
    assert sum(job.panoramic for job in jobs) == pytest.approx(120, abs=3)
    assert all(job.panoramic for job in plan(PRESETS["panoramic"], 20, 10, seed=1))


def test_unseen_holds_the_other_systems_only():
    jobs = plan(PRESETS["unseen"], 20, 10, seed=0)
    assert {line.system for job in jobs for line in job.lines} == {"other"}


def test_seed_decides_the_plan():
    assert plan(PRESETS["mini"], 40, 10, seed=1) == plan(PRESETS["mini"], 40, 10, seed=1)
    assert plan(PRESETS["mini"], 40, 10, seed=1) != plan(PRESETS["mini"], 40, 10, seed=2)


@pytest.mark.parametrize(("images", "patients"), [(4, 4), (10, 11), (10, 0)])
def test_impossible_numbers(images, patients):
    with pytest.raises(DataError, match=f"{patients} patients and {images} images: expected at least 5 patients"):
        plan(PRESETS["mini"], images, patients, seed=0)
