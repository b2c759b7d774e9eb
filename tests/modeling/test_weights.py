import functools
import logging
import pickle

import pytest
import timm
import torch
from torch import nn

from implantdet.modeling import weights
from implantdet.modeling.backbone import build_pyramid
from implantdet.modeling.vit import ViT
from implantdet.modeling.weights import fit_backbone_state, load_backbone_weights, read_checkpoint


def build_vit(seed=1, name="test_vit", img_size=64, in_chans=1):
    torch.manual_seed(seed)
    return ViT(name=name, img_size=img_size, in_chans=in_chans).eval()


class Detector(nn.Module):
    """What matters here of a detector: the names of its parts."""

    def __init__(self, vit):
        super().__init__()
        self.backbone = build_pyramid(vit, 8)
        self.roi_heads = nn.Linear(2, 2)


def save(folder, content):
    path = folder / "weights.pth"
    torch.save(content, path)
    return str(path)


def mae_checkpoint(img_size=96, name="test_vit", in_chans=1):
    """The layout of the public MAE checkpoints: encoder, decoder and mask token side by side under 'model'."""
    state = build_vit(seed=7, name=name, img_size=img_size, in_chans=in_chans).state_dict()
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 37, 8),
        "decoder_embed.weight": torch.zeros(8, 64),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_pred.bias": torch.zeros(256),
    }
    return {"model": {**state, **decoder}}


def assert_same_encoder(vit, other):
    torch.testing.assert_close(vit.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_mae_layout_loads_without_its_decoder(tmp_path, caplog):
    vit = build_vit()
    with caplog.at_level(logging.INFO, logger="implantdet"):
        load_backbone_weights(Detector(vit), save(tmp_path, mae_checkpoint(img_size=64)))
    assert_same_encoder(vit, build_vit(seed=7))
    total = len(vit.state_dict())
    assert f"{total} of {total} keys matched, 0 missing, 0 unexpected, 0 of another shape" in caplog.text


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_is_named(tmp_path, share):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.zeros(9000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"weights\.pth: expected a checkpoint"):
        read_checkpoint(str(path))


def test_the_encoders_keys_are_those_of_the_public_mae_checkpoints():
    """As mae_pretrain_vit_base.pth and mae_visualize_vit_base.pth spell them."""
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ["patch_embed.proj", "norm", *(f"blocks.{index}.{layer}" for index in range(12) for layer in layers)]
    with torch.device("meta"):
        vit = ViT(name="vit_base_patch16_224", img_size=224, in_chans=3)
    assert vit.state_dict().keys() == {
        *("cls_token", "pos_embed"),
        *(f"{module}.{kind}" for module in modules for kind in ("weight", "bias")),
    }


@torch.no_grad()
def test_positions_are_resampled_to_the_grid_of_the_model(tmp_path):
    vit = build_vit(img_size=64)
    load_backbone_weights(vit, save(tmp_path, mae_checkpoint(img_size=96)))
    # The stored grid of 6 × 6 and its resampling to 4 × 4 give the same features on 4 × 4 patches.
    images = torch.randn(2, 1, 64, 64)
    expected = build_vit(seed=7, img_size=96)(images)["last_feat"]
    torch.testing.assert_close(vit(images)["last_feat"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_our_own_layout(tmp_path, prefix):
    source, target = Detector(build_vit(seed=7)), Detector(build_vit())
    state = {prefix + key: value for key, value in source.state_dict().items()}
    load_backbone_weights(target, save(tmp_path, {"model": state, "iteration": 3}))
    assert_same_encoder(target.backbone.net, source.backbone.net)
    assert not torch.equal(target.roi_heads.weight, source.roi_heads.weight), "heads are of another task"


def test_a_pretraining_checkpoint_leaves_the_rest_of_the_detector_alone(tmp_path):
    vit = build_vit(seed=7)
    state = {f"backbone.net.{key}": value for key, value in vit.state_dict().items()}
    state["decoder.weight"] = torch.zeros(3)
    target = Detector(build_vit())
    before = target.roi_heads.weight.clone()
    load_backbone_weights(target, save(tmp_path, {"model": state}))
    assert_same_encoder(target.backbone.net, vit)
    assert torch.equal(target.roi_heads.weight, before)


@pytest.mark.parametrize("wrap", [lambda vit: vit, lambda vit: build_pyramid(vit, 8), Detector])
def test_any_model_around_the_vit_takes_the_weights(tmp_path, wrap):
    vit = build_vit()
    load_backbone_weights(wrap(vit), save(tmp_path, {"model": Detector(build_vit(seed=7)).state_dict()}))
    assert_same_encoder(vit, build_vit(seed=7))


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3"])
def test_a_pretrained_name_goes_through_timm(tmp_path, monkeypatch, name):
    torch.manual_seed(7)
    pretrained = timm.create_model(name)
    file = save(tmp_path, pretrained.state_dict())
    # timm reads its weights from here instead of fetching them.
    create = functools.partial(timm.create_model, pretrained_cfg_overlay={"file": file})
    monkeypatch.setattr(weights.timm, "create_model", create)
    vit = ViT(name=name, img_size=pretrained.patch_embed.img_size[0], in_chans=3).eval()
    load_backbone_weights(Detector(vit), f"timm://{name}")
    expected = pretrained.state_dict()
    for key, value in vit.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_name_that_timm_has_no_weights_for():
    with pytest.raises(RuntimeError, match=r"timm://no_such_vit: timm .* gave no such weights .*list_pretrained"):
        read_checkpoint("timm://no_such_vit")


@torch.no_grad()
def test_folding_three_channels_to_one_is_exact_on_grey_images(tmp_path):
    vit = build_vit(in_chans=1)
    load_backbone_weights(vit, save(tmp_path, mae_checkpoint(img_size=64, in_chans=3)))
    grey = torch.randn(2, 1, 64, 96)
    expected = build_vit(seed=7, in_chans=3)(grey.expand(-1, 3, -1, -1))["last_feat"]
    torch.testing.assert_close(vit(grey)["last_feat"], expected, rtol=0, atol=1e-5)


def test_one_channel_is_not_spread_over_three(tmp_path):
    path = save(tmp_path, mae_checkpoint(img_size=64, in_chans=1))
    with pytest.raises(ValueError, match=r"1 of another shape\n.*patch_embed.proj.weight \(\(64, 1, 16, 16\) for"):
        load_backbone_weights(build_vit(in_chans=3), path)


@torch.no_grad()
def test_a_patch_embedding_of_14_pixels_is_resampled(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("test_vit", img_size=56, patch_size=14, in_chans=1)
    vit = build_vit()
    load_backbone_weights(vit, save(tmp_path, source.state_dict()))
    # FlexiViT's resampling keeps the embedding of a patch that is enlarged with it; a constant patch stays constant.
    embedded = source.patch_embed(torch.ones(1, 1, 56, 56))[0, 0, 0]
    torch.testing.assert_close(vit.patch_embed(torch.ones(1, 1, 64, 64))[0, 0, 0], embedded, rtol=1e-3, atol=1e-3)


def test_missing_keys_are_an_error_that_names_them_and_the_way_out(tmp_path):
    checkpoint = mae_checkpoint(img_size=64)
    del checkpoint["model"]["norm.bias"], checkpoint["model"]["blocks.3.attn.qkv.weight"]
    vit = build_vit()
    before = {key: value.clone() for key, value in vit.state_dict().items()}
    total = len(before)
    message = (
        rf"(?s){total - 2} of {total} keys matched, 2 missing, 0 unexpected.*"
        r"missing: blocks.3.attn.qkv.weight, norm.bias\n.*MODEL.VIT.ALLOW_PARTIAL_WEIGHTS"
    )
    with pytest.raises(ValueError, match=message):
        load_backbone_weights(vit, save(tmp_path, checkpoint))
    torch.testing.assert_close(vit.state_dict(), before, rtol=0, atol=0)  # nothing was loaded


def test_unexpected_keys_are_an_error(tmp_path):
    checkpoint = mae_checkpoint(img_size=64)
    checkpoint["model"]["blocks.6.norm1.weight"] = torch.ones(64)
    with pytest.raises(ValueError, match=r"1 unexpected.*\n.*unexpected: blocks.6.norm1.weight"):
        load_backbone_weights(build_vit(), save(tmp_path, checkpoint))


def test_weights_of_another_model_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"of another shape: .*, …\n"):
        load_backbone_weights(build_vit(), save(tmp_path, mae_checkpoint(64, name="test_vit3")))


def test_a_state_dict_without_a_vit_is_an_error(tmp_path):
    for allow_partial in (False, True):  # of nothing there is no part
        with pytest.raises(
            ValueError, match=r"none .* of a ViT: found keys such as conv1\.weight; expected timm's names"
        ):
            load_backbone_weights(build_vit(), save(tmp_path, {"conv1.weight": torch.zeros(1)}), allow_partial)


def test_partial_weights_load_what_fits_if_asked_for(tmp_path, caplog):
    checkpoint = mae_checkpoint(img_size=64)
    state = checkpoint["model"]
    del state["norm.bias"]
    state["cls_token"] = torch.zeros(1, 1, 65)
    vit = build_vit()
    cls_token = vit.cls_token.detach().clone()
    with caplog.at_level(logging.WARNING, logger="implantdet"):
        load_backbone_weights(vit, save(tmp_path, checkpoint), allow_partial=True)
    assert "1 missing, 0 unexpected, 1 of another shape" in caplog.text
    assert torch.equal(vit.cls_token, cls_token)
    assert torch.equal(vit.pos_embed, state["pos_embed"])


def test_positions_that_form_no_square_are_reported(tmp_path):
    checkpoint = mae_checkpoint(img_size=64)
    checkpoint["model"]["pos_embed"] = torch.zeros(1, 1 + 12, 64)
    with pytest.raises(ValueError, match=r"pos_embed \(\(1, 13, 64\) for \(1, 17, 64\)\)"):
        load_backbone_weights(build_vit(), save(tmp_path, checkpoint))


def test_a_model_without_a_vit_gets_its_state_back():
    state = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    assert fit_backbone_state(state, nn.Linear(2, 2)) == state


@pytest.mark.parametrize("prefix", ["", "module.backbone.net."])
def test_the_given_state_is_not_changed(prefix):
    encoder = build_vit(img_size=96, in_chans=3).state_dict()
    state = {prefix + key: value for key, value in encoder.items()}
    before = dict(state)
    fit_backbone_state(state, build_vit())
    assert list(state) == list(before)
    assert all(state[key] is before[key] for key in state)


def test_other_entries_of_a_checkpoint_are_kept(tmp_path):
    checkpoint = read_checkpoint(save(tmp_path, {"model": {"a": torch.ones(2)}, "iteration": 7}))
    assert checkpoint["iteration"] == 7
    assert torch.equal(checkpoint["model"]["a"], torch.ones(2))


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.pth: no such file; MODEL.WEIGHTS is"):
        read_checkpoint(str(tmp_path / "missing.pth"))


def test_a_pkl_file_is_refused_unread(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {}}))
    with pytest.raises(ValueError, match="found a pickle, which can run code"):
        read_checkpoint(str(path))


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    touched = tmp_path / "touched"
    path = save(tmp_path, {"model": {}, "args": Evil(touched)})
    with pytest.raises(ValueError, match="nothing but tensors and plain values"):
        read_checkpoint(path)
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.pth: expected a checkpoint(, .*write it again| of nothing)"):
        read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"state_dict": {"a": torch.ones(1)}}, r"the keys \['state_dict'\]"),
        ({"model": {"a": {"b": torch.ones(1)}}}, r"the keys \['a'\]"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_a_file_without_a_state_dict(tmp_path, content, found):
    with pytest.raises(ValueError, match=f"expected a state dict, or one under the key 'model'; found {found}"):
        read_checkpoint(save(tmp_path, content))


@pytest.mark.parametrize("where", ["", "encoder"])
def test_a_model_reads_what_it_has_saved_wherever_its_vit_is(where):
    def build():
        pyramid = build_pyramid(ViT(name="test_vit", img_size=64, in_chans=1), 16)
        return nn.ModuleDict({where: pyramid}) if where else pyramid

    model, other = build(), build()
    state = fit_backbone_state(model.state_dict(), other)
    assert state.keys() == other.state_dict().keys()
    other.load_state_dict(state)
    torch.testing.assert_close(other.state_dict(), model.state_dict())
