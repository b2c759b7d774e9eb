import numpy as np
import pytest
from implant_scenes import CLASSES, fitted, scenes

from implantdet.assembly.assembler import PartAssembler
from implantdet.assembly.fitting import fit_geometry
from implantdet.assembly.known import known_implants


def known(num_images, seed=0):
    return [known_implants(record, fitted().meanings) for record in scenes(num_images, seed)]


def test_the_shapes_of_known_implants_are_learned():
    model, regressions = fit_geometry(known(40), box_noise=0.0)
    # Widths are 0.28 … 0.4 of the length, three times that of a third, less 0, 5 and 10 % of taper (half of 0 … 30 %).
    assert model.aspects == pytest.approx([1.02, 0.97, 0.92], abs=0.04)
    assert (np.diff(model.aspects) < 0).all()
    spacing = model.triple.mean[0, :2]
    assert spacing == pytest.approx([0, 0], abs=0.02)
    assert model.triple.mean[0, -1] == pytest.approx(0, abs=1e-12)  # the offset from the axis has no side
    assert np.degrees(model.tilt_std) == pytest.approx(4.2, abs=1)  # 5° about each image's own mean of a few
    assert len(regressions) == 12


def test_noise_widens_what_is_expected():
    exact, _ = fit_geometry(known(40), box_noise=0.0)
    noisy, _ = fit_geometry(known(40), box_noise=0.1)
    assert np.linalg.det(noisy.triple.precision[0]) < np.linalg.det(exact.triple.precision[0])


def test_noise_along_the_implants_widens_spacings_more_than_widths():
    def spread(across, along):  # of the edges that run so
        model, _ = fit_geometry(known(60), box_noise=np.tile([across, along], (5, 1)))
        std = np.sqrt(np.diag(np.linalg.inv(model.triple.precision[0])))
        return std[:2].mean(), std[4:6].mean()  # of spacings, of ratios of widths

    (spacing, width), (spacing_too, width_too) = spread(0.1, 0.0), spread(0.0, 0.1)
    assert spacing > 1.5 * spacing_too
    assert width_too > 1.5 * width


def test_noise_larger_than_a_box_leaves_boxes():
    model, _ = fit_geometry(known(40), box_noise=2.0)
    assert np.isfinite(model.wholes.precision).all()
    assert np.isfinite(model.triple.precision).all()


def test_the_same_seed_learns_the_same():
    one, _ = fit_geometry(known(10), 0.05, seed=3)
    same, _ = fit_geometry(known(10), 0.05, seed=3)
    other, _ = fit_geometry(known(10), 0.05, seed=4)
    assert (one.pairs.precision == same.pairs.precision).all()
    assert (one.pairs.precision != other.pairs.precision).any()


def test_cut_thirds_teach_nothing():
    images = known(10)
    for implant in images[0]:
        implant.cut.add("apical")
        implant.boxes["apical"] = (0.0, 0.0, 1.0, 1.0)
    with_cut, _ = fit_geometry(images, 0.0)
    without, _ = fit_geometry(images[1:], 0.0)
    assert (with_cut.aspects == without.aspects).all()


def test_too_few_implants_are_refused():
    with pytest.raises(ValueError, match=r"has 0 implants.*'implant_id'.*at least 10"):
        PartAssembler(CLASSES).fit([{"width": 9, "height": 9, "annotations": []}])
