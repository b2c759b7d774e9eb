"""Weights for the ViT backbone: read from a file or from timm, fitted to the model, and checked before they are loaded.

Three layouts are understood:

* ours, ``backbone.net.<timm name>``: checkpoints of pre-training and of detection;
* bare, ``<timm name>``: timm's pretrained models, and public MAE checkpoints (arXiv:2111.06377), less the decoder;
* the model's own, wherever it has its ViT: what it has saved itself.

A Detectron2 checkpointer calls ``read_checkpoint`` in ``_load_file`` and ``fit_backbone_state`` in ``_load_model``;
without a checkpointer, ``load_backbone_weights`` does both.
"""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from detectron2.utils.file_io import PathManager
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from implantdet.modeling.vit import ViT

logger = logging.getLogger(__name__)

TIMM_SCHEME = "timm://"
ENCODER_PREFIX = "backbone.net."
_PATCH_WEIGHT = "patch_embed.proj.weight"
# What the bare layout holds beside the encoder: MAE's decoder, and timm's pooling and classifier.
_NOT_ENCODER = ("decoder_", "mask_token", "head.", "fc_norm.", "attn_pool.", "pre_logits.")


def read_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        source: path or URL of a ``.pth`` file, or ``timm://<name>`` for a pretrained model of timm.

    Returns:
        The checkpoint: ``model`` is the flat state dict, on the CPU; other entries are as saved.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is a ``.pkl``, holds more than plain tensors and containers, or holds no state dict.
        RuntimeError: timm has no such weights, or could not fetch them.
    """
    if source.startswith(TIMM_SCHEME):
        return {"model": _timm_state(source.removeprefix(TIMM_SCHEME))}
    if source.endswith(".pkl"):
        raise ValueError(f"{source}: found a pickle, which can run code when it is read; expected a .pth of tensors")
    path = local_checkpoint(source)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if isinstance(error, PermissionError):
            raise  # the file may be whole
        if not isinstance(error, pickle.UnpicklingError) or not path.stat().st_size:
            found = f"{path.stat().st_size} bytes that are no whole file of torch.save"
            raise ValueError(
                f"{source}: expected a checkpoint, found {found} ({str(error).partition(chr(10))[0] or 'it ends'}). "
                "It may be cut off: fetch or write it again"
            ) from error
        found = str(error).partition("\n")[0]
        raise ValueError(
            f"{source}: expected a checkpoint of nothing but tensors and plain values, found {found!r}. "
            "If you trust the file, save its weights alone: torch.save({'model': checkpoint['model']}, path)"
        ) from error
    if isinstance(checkpoint, dict) and "model" not in checkpoint:
        checkpoint = {"model": checkpoint}
    state = checkpoint["model"] if isinstance(checkpoint, dict) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = f"the keys {list(state)[:5]}" if isinstance(state, Mapping) else f"a {type(checkpoint).__name__}"
        raise ValueError(f"{source}: expected a state dict, or one under the key 'model'; found {found}")
    return checkpoint


def local_checkpoint(source: str) -> Path:
    """The file of a checkpoint, fetched if ``source`` is a URL.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(PathManager.get_local_path(source))
    if not path.is_file():
        raise FileNotFoundError(f"{source}: no such file; MODEL.WEIGHTS is a .pth file, a URL, or {TIMM_SCHEME}<name>")
    return path


def _timm_state(name: str) -> dict[str, Tensor]:
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (RuntimeError, OSError) as error:
        raise RuntimeError(
            f"MODEL.WEIGHTS {TIMM_SCHEME}{name}: timm {timm.__version__} gave no such weights ({error}). "
            "timm.list_pretrained('vit_*') lists the names; without a network, give the path of a saved state dict"
        ) from error


def fit_backbone_state(state: Mapping[str, Tensor], model: nn.Module, allow_partial: bool = False) -> dict[str, Tensor]:
    """Fit a state dict of either layout to the ViT inside ``model``, and check that all of that ViT is covered.

    Nothing is loaded. A model without a ViT gets its state dict back unchanged, so this can be called for any model.

    Args:
        state: flat state dict, as ``read_checkpoint(…)["model"]``.
        model: a detector, a pre-training model, a pyramid, or the ViT itself.
        allow_partial: ``MODEL.VIT.ALLOW_PARTIAL_WEIGHTS``: accept keys of the ViT that are missing, unexpected or of
            another shape.

    Returns:
        A state dict with the keys of ``model``, to be loaded with ``strict=False``. Other parts are as they were.

    Raises:
        ValueError: ``allow_partial`` is False and the ViT would not load completely, or nothing of it would.
    """
    found = next(((name, module) for name, module in model.named_modules() if isinstance(module, ViT)), None)
    if found is None:
        return dict(state)
    name, vit = found
    prefix = f"{name}." if name else ""
    encoder, others = _split_encoder(state, prefix)
    if not vit.state_dict().keys() & encoder.keys():
        raise ValueError(
            f"none of these weights is one of a ViT: found keys such as {', '.join(list(state)[:4]) or 'none'}; "
            f"expected timm's names, {_PATCH_WEIGHT} among them, bare or after {ENCODER_PREFIX}"
        )
    _adapt_shapes(encoder, vit)
    _check_coverage(encoder, vit, allow_partial)
    shapes = {key: value.shape for key, value in vit.state_dict().items()}
    # load_state_dict(strict=False) forgives everything but a shape.
    encoder = {prefix + key: value for key, value in encoder.items() if value.shape == shapes.get(key, value.shape)}
    return {**others, **encoder}


def _split_encoder(state: Mapping[str, Tensor], own: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's part of a state dict with timm's bare names, and the other parts of the same model.

    Args:
        state: of any of the layouts.
        own: where the ViT stands in the model that is to be loaded, ``encoder.`` or the like; empty: it is the ViT.
    """
    state = dict(state)
    consume_prefix_in_state_dict_if_present(state, "module.")  # saved from DistributedDataParallel
    prefix = own if own and own + _PATCH_WEIGHT in state else ENCODER_PREFIX
    if any(key.startswith(prefix) for key in state):
        encoder = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
        others = {key: state[key] for key in state if not key.startswith(prefix)}
        return encoder, others if prefix == own else {}
    if _PATCH_WEIGHT in state:
        return {key: state[key] for key in state if not key.startswith(_NOT_ENCODER)}, {}
    return {}, state


def _adapt_shapes(encoder: dict[str, Tensor], vit: ViT) -> None:
    """Fold the patch embedding to the ViT's channels, and resample it and the positions to its sizes, in place.

    The folded embedding is the sum over the three channels: on a grey image it gives exactly what the original gives
    on that image in all three, *as long as these are normalised alike*. ImageNet's statistics differ by channel, so
    the original saw a slight tint in a grey image: with the mean 114.5 and the standard deviation 57.6 (the averages
    over ImageNet's channels, in grey levels) for ``PIXEL_MEAN`` and ``PIXEL_STD``, up to 0.2 standard deviations per
    channel. Fine-tuning takes up the difference.
    """
    weight, target = encoder.get(_PATCH_WEIGHT), vit.patch_embed.proj.weight
    if weight is not None and weight.ndim == 4:
        if weight.shape[1] == 3 and target.shape[1] == 1:
            logger.info("Folding the patch embedding from three channels to one, by their sum.")
            weight = adapt_input_conv(1, weight)
        if weight.shape[-2:] != target.shape[-2:]:
            logger.info("Resampling the patch embedding from %d to %d pixels.", weight.shape[-1], target.shape[-1])
            weight = resample_patch_embed(weight, list(target.shape[-2:]))
        encoder[_PATCH_WEIGHT] = weight
    positions = encoder.get("pos_embed")
    if positions is not None and vit.pos_embed is not None and positions.shape[1] != vit.pos_embed.shape[1]:
        num_patches = positions.shape[1] - vit.num_prefix_positions
        # The sides of anything but a square are not known; such positions stay, and are reported by their shape.
        if num_patches == math.isqrt(max(num_patches, 0)) ** 2:
            logger.info("Resampling %d positions to the grid %s.", num_patches, vit.patch_embed.grid_size)
            encoder["pos_embed"] = resample_abs_pos_embed(
                positions, new_size=list(vit.patch_embed.grid_size), num_prefix_tokens=vit.num_prefix_positions
            )


def _check_coverage(encoder: dict[str, Tensor], vit: ViT, allow_partial: bool) -> None:
    """Count and log matched, missing and unexpected keys; raise if any key is not matched."""
    expected = vit.state_dict()
    wrong_shape = [key for key in encoder if key in expected and encoder[key].shape != expected[key].shape]
    missing = [key for key in expected if key not in encoder]
    unexpected = [key for key in encoder if key not in expected]
    matched = len(expected) - len(missing) - len(wrong_shape)
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong_shape}
    counts = ", ".join(f"{len(keys)} {kind}" for kind, keys in problems.items())
    message = f"backbone: {matched} of {len(expected)} keys matched, {counts}"
    for kind, keys in problems.items():
        if keys:
            message += f"\n  {kind}: {', '.join(_describe(key, encoder, expected) for key in keys[:4])}"
            message += ", …" if len(keys) > 4 else ""
    is_complete = not any(problems.values())
    if not is_complete and not allow_partial:
        raise ValueError(
            f"{message}\nThe weights do not fit the ViT of MODEL.VIT. "
            "Set MODEL.VIT.ALLOW_PARTIAL_WEIGHTS to True if they are meant to be loaded in part"
        )
    logger.log(logging.INFO if is_complete else logging.WARNING, message)


def _describe(key: str, encoder: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    if key in encoder and key in expected:
        return f"{key} ({tuple(encoder[key].shape)} for {tuple(expected[key].shape)})"
    return key


def load_backbone_weights(model: nn.Module, source: str, allow_partial: bool = False) -> None:
    """Load the ViT inside ``model``, and nothing else of a checkpoint: neither its pyramid nor its heads."""
    state = fit_backbone_state(read_checkpoint(source)["model"], model, allow_partial)
    prefix = next(f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, ViT))
    model.load_state_dict({key: value for key, value in state.items() if key.startswith(prefix)}, strict=False)
