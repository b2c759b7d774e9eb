"""Figure 4: PSNR by hand, predictions of pixels, and the decoder for the eye."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from detectron2.utils import comm

from implantdet.evaluation.reconstruction import ReconstructionEvaluator, decode, psnr, reconstructions, save_figure
from implantdet.modeling.mim_masking import PatchMask
from implantdet.modeling.mim_targets import patchify, standardize

MEAN, STD = [100.0], [50.0]
SOME = torch.tensor([1, 5, 7])


def output_of(seed, error=0.0, grid=(4, 3), target_dim=None, hidden=SOME):
    """What a model would return that is wrong by ``error`` (normalised) in every hidden pixel."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 1, 16 * grid[0], 16 * grid[1], generator=generator) * 2 - 1
    pixels = patchify(image)[0]
    output = {"grid": grid, "pixels": pixels, "mask": PatchMask(torch.tensor([[0]]), hidden[None])}
    if target_dim is None:
        return output | {"pixel_predictions": pixels[hidden] + error}
    matrix = torch.randn(256, target_dim, generator=torch.Generator().manual_seed(9))
    return output | {"predictions": (standardize(pixels) @ matrix)[hidden]}


def test_psnr_by_hand():
    image = torch.full((4, 4), 100.0)
    assert math.isclose(psnr(image + 5, image), 10 * math.log10(255**2 / 25), rel_tol=1e-6)
    assert psnr(image, image) == math.inf


def test_evaluator_measures_hidden_patches_only(tmp_path):
    evaluator = ReconstructionEvaluator(tmp_path / "out", MEAN, STD, num_drawn=2)
    evaluator.reset()
    evaluator.process([{}] * 3, [output_of(seed, error=0.1) for seed in range(3)])
    results = evaluator.evaluate()
    # An error of 0.1 normalised is 5 grey levels; levels stay between 50 and 150 and are not clipped.
    assert math.isclose(results["reconstruction"]["PSNR_pixels"], 10 * math.log10(255**2 / 25), rel_tol=1e-4)
    # What flat patches lack is the variance of the hidden ones.
    outputs = [output_of(seed, error=0.1) for seed in range(3)]
    variances = [
        output["pixels"][output["mask"].predicted[0]].var(dim=1, correction=0).mean() * 50**2 for output in outputs
    ]
    expected = sum(10 * math.log10(255**2 / variance) for variance in variances) / 3
    assert math.isclose(results["reconstruction"]["PSNR_flat"], expected, rel_tol=1e-4)
    written = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert written == {"num_images": 3, **results}
    picture = cv2.imread(str(tmp_path / "out/reconstruction.png"))
    assert picture is not None and picture.std() > 10
    assert not list((tmp_path / "out").glob(".*"))  # no temporary file is left


def test_an_image_of_one_grey_level_is_not_measured(tmp_path):
    blank = output_of(0, error=0.1)
    blank["pixels"] = torch.zeros_like(blank["pixels"])
    results = []
    for outputs in ([output_of(1, error=0.1)], [output_of(1, error=0.1), blank], [blank]):
        evaluator = ReconstructionEvaluator(tmp_path, MEAN, STD, num_drawn=2)
        evaluator.reset()
        evaluator.process([{}] * len(outputs), outputs)
        results.append(evaluator.evaluate()["reconstruction"])
    assert results[0] == results[1] and results[2] == {}


def test_columns_show_what_they_say(tmp_path):
    evaluator = ReconstructionEvaluator(tmp_path, MEAN, STD, num_drawn=1)
    evaluator.reset()
    output = output_of(0, error=0.2)
    evaluator.process([{}], [output])
    evaluator.evaluate()
    assert list(evaluator.columns_) == ["original", "masked", "by pixels"]
    (original,), (masked,), (reconstruction,) = evaluator.columns_.values()
    assert original.shape == (64, 48)
    hidden = np.zeros((4, 3), dtype=bool)
    hidden.flat[[1, 5, 7]] = True
    hidden = hidden.repeat(16, axis=0).repeat(16, axis=1)
    assert (masked[hidden] == 128).all() and (masked[~hidden] == original[~hidden]).all()
    assert (reconstruction[~hidden] == original[~hidden]).all()
    assert np.abs(reconstruction[hidden].astype(int) - original[hidden] - 10).max() <= 1  # 0.2 · 50


def everything_hidden(seed, grid):
    """Predictions that are an invertible linear map of the pixels of all patches."""
    hidden = torch.arange(grid[0] * grid[1])
    return output_of(seed, grid=grid, target_dim=300, hidden=hidden) | {"hidden": hidden}


def test_embeddings_are_decoded_by_a_regression_on_other_images():
    """Its decoder is the inverse of the map."""
    outputs = [everything_hidden(seed, (8, 8)) for seed in range(12)]
    for output, pixels in zip(outputs, decode(outputs), strict=True):
        assert torch.allclose(pixels, output["pixels"], atol=0.05)


def test_decoder_does_not_see_the_image_that_it_decodes():
    outputs = [output_of(seed, target_dim=300) | {"hidden": torch.tensor([1, 5, 7])} for seed in range(4)]
    before = decode(outputs)
    changed = [*outputs[:3], outputs[3] | {"predictions": outputs[3]["predictions"] * 7 + 1}]
    after = decode(changed)
    assert torch.equal(after[1], before[1])
    assert not torch.allclose(after[0], before[0])


def test_flat_predictions_are_decoded_by_what_they_hold():
    """Of a hundredth of the targets' size, as early in a training, they hold as much."""
    outputs = [everything_hidden(seed, (8, 8)) for seed in range(12)]
    flat = [output | {"predictions": output["predictions"] / 100} for output in outputs]
    for one, other in zip(decode(outputs), decode(flat), strict=True):
        assert (one - other).square().mean().sqrt() < 0.3  # of a deviation of 0.58


def test_a_model_of_pixels_and_embeddings_is_drawn_by_both(tmp_path):
    outputs = [everything_hidden(seed, (8, 8)) for seed in range(12)]
    for output in outputs:
        output["pixel_predictions"] = output["pixels"] + 0.2
    both = reconstructions(outputs)
    assert list(both) == ["pixels", "embeddings"]
    assert all(torch.equal(*pair) for pair in zip(both["embeddings"], decode(outputs), strict=True))
    evaluator = ReconstructionEvaluator(tmp_path, MEAN, STD)
    evaluator.reset()
    evaluator.process([{}] * len(outputs), outputs)
    results = evaluator.evaluate()["reconstruction"]
    assert list(evaluator.columns_) == ["original", "masked", "by pixels", "by embeddings"]
    # The pixels are wrong by 10 grey levels, where they are not clipped; the embeddings are right.
    assert math.isclose(results["PSNR_pixels"], 10 * math.log10(255**2 / 100), rel_tol=1e-4)
    assert results["PSNR_embeddings"] > 35


def test_a_single_image_is_drawn_too():
    output = everything_hidden(0, (4, 3))
    (pixels,) = decode([output])
    assert torch.allclose(pixels, output["pixels"], atol=0.05)


def test_number_of_images_is_bounded(tmp_path):
    evaluator = ReconstructionEvaluator(tmp_path, MEAN, STD, max_images=2, num_drawn=1)
    evaluator.reset()
    for seed in range(4):
        evaluator.process([{}], [output_of(seed, error=0.1)])
    evaluator.evaluate()
    assert json.loads((tmp_path / "reconstruction.json").read_text())["num_images"] == 2


def test_the_images_are_those_of_one_process_however_many_there_are(tmp_path, monkeypatch):
    """Two processes with the first and the last two images; three are asked for."""
    evaluators = [ReconstructionEvaluator(tmp_path, MEAN, STD, max_images=3, num_drawn=3) for _ in range(3)]
    for evaluator, seeds in zip(evaluators, ((0, 1, 2, 3), (0, 1), (2, 3)), strict=True):
        evaluator.reset()
        for seed in seeds:
            evaluator.process([{}], [output_of(seed, error=0.1)])
    alone = evaluators[0].evaluate()
    monkeypatch.setattr(comm, "gather", lambda outputs, dst: [outputs, evaluators[2]._outputs])
    assert evaluators[1].evaluate() == alone
    assert json.loads((tmp_path / "reconstruction.json").read_text())["num_images"] == 3
    for name, images in evaluators[0].columns_.items():
        assert all(map(np.array_equal, images, evaluators[1].columns_[name]))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_figure_has_a_column_per_name(shape, tmp_path):
    images = [np.full(shape, 200, np.uint8)] * 2
    save_figure(tmp_path / "figure.png", {"original": images, "MAE": images, "MDE": images})
    height, width = cv2.imread(str(tmp_path / "figure.png")).shape[:2]
    assert width / height == pytest.approx(3 / 2, rel=0.1)
