"""What a masked image model tells of one image: features, predictions, and the pixels that they stand for."""

import pytest
import torch
from tiny_mim import tiny_model

from implantdet.modeling.masked_image_model import restore
from implantdet.modeling.mim_targets import patchify, standardize
from implantdet.modeling.vit import ViT


@pytest.mark.parametrize(("target", "pixel_weight"), [("pixel", 0.0), ("patch_embed", 0.5), ("encoder", 0.0)])
def test_inference(target, pixel_weight):
    model = tiny_model(target, pixel_weight=pixel_weight).eval()
    images = [torch.rand(1, 60, 90) * 255, torch.rand(1, 64, 64) * 255]
    wide, square = model([{"image": image} for image in images])
    # Features are of all that is there, padded; predictions of whole patches, because padding is no picture.
    assert wide["features"].shape == (64, 4, 6) and wide["grid"] == (3, 5)
    assert torch.equal(wide["pixels"], patchify((images[0][None, :, :48, :80] - 100) / 50)[0])
    assert ("predictions" in wide) == (target != "pixel")
    if target != "pixel":
        assert wide["predictions"].shape == (12, model.target.dim)
    assert ("pixel_predictions" in wide) == (target == "pixel" or pixel_weight > 0)
    normalised = (images[1] - 100) / 50
    assert torch.equal(square["features"], model.encoder(normalised[None])["last_feat"][0])
    again = model([{"image": images[1]}])[0]
    assert torch.equal(square["mask"].masked, again["mask"].masked)


@pytest.mark.parametrize(
    ("target", "pixel_weight", "norm"), [("pixel", 0.0, True), ("pixel", 0.0, False), ("patch_embed", 0.5, False)]
)
def test_a_model_that_predicts_rightly_shows_the_hidden_pixels(monkeypatch, target, pixel_weight, norm):
    model = tiny_model(target, pixel_weight=pixel_weight, norm_target=norm).eval()

    def predict(images, mask):
        pixels = patchify(images)[0][mask.predicted[0]]
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        standard = ((pixels - mean) / (variance + 1e-6).sqrt())[None]
        # A second output is always of standardised pixels; the first, where pixels are the target, if it is normalised.
        return (standard if norm else pixels[None]) if target == "pixel" else torch.zeros(1, 12, 64), standard

    monkeypatch.setattr(model, "predict", predict)
    (found,) = model([{"image": torch.rand(1, 64, 64) * 255}])
    torch.testing.assert_close(
        found["pixel_predictions"], found["pixels"][found["mask"].predicted[0]], atol=1e-4, rtol=0
    )


def test_features_are_those_of_an_encoder_without_windows_as_it_is_trained():
    torch.manual_seed(0)
    plain, windowed = (ViT(name="test_vit", img_size=64, in_chans=1, window_size=size) for size in (0, 2))
    windowed.load_state_dict(plain.state_dict())
    image, found = torch.rand(1, 64, 64) * 255, []
    for encoder in (plain, windowed):
        model = tiny_model()
        model.backbone["net"] = encoder
        found.append(model.eval().inference(image)["features"])
    assert torch.equal(*found)
    assert not torch.allclose(windowed(image[None])["last_feat"], plain(image[None])["last_feat"])


def test_an_image_smaller_than_a_patch_is_padded_to_one():
    found = tiny_model().eval().inference(torch.full((1, 15, 40), 200.0))
    assert found["features"].shape == (64, 1, 3) and found["grid"] == (1, 2)
    assert found["pixels"].reshape(2, 16, 16)[:, -1].eq(0).all()


def test_restore_undoes_standardize():
    pixels = torch.rand(5, 256) * 3
    assert torch.allclose(restore(standardize(pixels), pixels), pixels, atol=1e-5)
