"""Beer and Lambert, noise and display, against hand arithmetic."""

from dataclasses import replace

import numpy as np
import pytest

from implantdet.phantom.xray import Exposure, display_curve, expose, intensity

PLAIN = Exposure(
    grey_air=8,
    grey_bone=120,
    grey_implant=230,
    grey_crown=252,
    scatter=0.0,
    blur=0.4,
    photons=1e9,
    electronic=0.0,
    sharpen=0.0,
    sharpen_radius=1.0,
    equalize=0.0,
    grain=0.0,
)


def test_slab_weakens_the_beam_by_beer_and_lambert():
    # 4 mm of 0.6 / mm: exp(-2.4) = 0.0907
    beam = intensity(np.full((40, 40), 4 * 0.6, np.float32), PLAIN)
    assert beam == pytest.approx(np.full((40, 40), 0.0907), abs=1e-4)


def test_scatter_adds_its_share_of_the_mean_intensity():
    depth = np.zeros((64, 64), np.float32)
    assert intensity(depth, replace(PLAIN, scatter=0.25)) == pytest.approx(np.full((64, 64), 1.25), abs=1e-3)


def test_anchors_show_as_their_greys():
    depth = np.full((32, 96), 0.18, np.float32)
    depth[:, 32:64], depth[:, 64:] = 1.0, 3.0
    grey = expose(depth, PLAIN, np.random.default_rng(0), bone=1.0, implant=3.0)
    assert grey[16, [16, 48, 80]] == pytest.approx([8, 120, 230], abs=1.0)


def test_more_metal_is_never_darker():
    curve = display_curve(PLAIN, bone=0.9, implant=2.8, fog=0.03)
    signal = np.linspace(curve.x[0], curve.x[-1], 500)
    assert (np.diff(curve(signal)) >= -1e-9).all()


def test_fewer_photons_are_noisier():
    depth = np.full((128, 128), 1.0, np.float32)
    noise = [
        expose(depth, replace(PLAIN, photons=photons), np.random.default_rng(1), bone=1.0, implant=3.0).std()
        for photons in (1000, 16000)
    ]
    # a sixteenth of the photons is four times the noise
    assert noise[0] / noise[1] == pytest.approx(4, rel=0.15)


def test_sharpening_draws_dark_halos_beside_metal():
    depth = np.full((40, 80), 1.0, np.float32)
    depth[:, 40:] = 4.0
    plain, sharp = (
        expose(depth, replace(PLAIN, sharpen=s, sharpen_radius=2.0), np.random.default_rng(2), bone=1.0, implant=3.5)
        for s in (0.0, 1.0)
    )
    assert sharp[:, 36:39].mean() < plain[:, 36:39].mean() - 8
    assert sharp[:, 10].mean() == pytest.approx(plain[:, 10].mean(), abs=1.0)


@pytest.mark.parametrize("panoramic", [False, True])
def test_sampled_exposures_are_ordered(panoramic):
    for seed in range(50):
        shot = Exposure.sample(np.random.default_rng(seed), panoramic)
        assert shot.grey_bone < shot.grey_implant < shot.grey_crown + 1
