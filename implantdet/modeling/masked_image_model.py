"""Masked image modelling: pre-training of the detector's encoder without labels.

Letters: N images, C channels, H × W grid of patches, L = H·W of them, M predicted patches, p side of a patch in pixels,
D channels of a token, T channels of a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from implantdet.modeling.mim_decoder import LinearHead, TransformerDecoder, build_decoder, sine_cosine_positions
from implantdet.modeling.mim_masking import MAX_MASK_RATIO, PatchMask, gather_tokens, sample_mask
from implantdet.modeling.mim_targets import (
    EncoderTarget,
    PatchEmbedTarget,
    PixelTarget,
    build_target,
    patchify,
    standardize,
)
from implantdet.modeling.vit import PATCH_SIZE, ViT

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "smooth_l1": F.smooth_l1_loss}


@META_ARCH_REGISTRY.register()
class MaskedImageModel(nn.Module):
    """Hides patches of radiographs and predicts what is behind them (MAE, arXiv:2111.06377; MDE, the paper, section 3).

    The encoder is the detector's, and its parameters have the detector's names, ``backbone.net.…``. Its positions are
    MAE's fixed ones, sines and cosines; ``timm://`` weights bring their own, which stay as they are, too.

    Args:
        encoder: the ViT.
        decoder: predicts the target and, with a ``pixel_weight``, behind it the p·p·C pixels of a patch.
        target: what is predicted for a patch.
        norm_target: standardise every patch's target over its channels.
        loss: ``l1``, ``l2`` or ``smooth_l1``: the mean over the hidden patches and the channels of the target.
        pixel_weight: weight of a second loss, l2 on the standardised pixels of the hidden patches; 0: none.
        mask_ratio: share of hidden patches, in [0, 0.95]; with 0 the loss sees all patches.
        mask_block: side of the hidden squares, in patches; 1: patches at random.
        pixel_mean: mean of every channel, in grey levels.
        pixel_std: divisor of every channel, in grey levels.

    Raises:
        ValueError: an argument is out of its range; the message names the config key.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        encoder: ViT,
        decoder: LinearHead | TransformerDecoder,
        target: PixelTarget | PatchEmbedTarget | EncoderTarget,
        norm_target: bool = True,
        loss: str = "l2",
        pixel_weight: float = 0.0,
        mask_ratio: float = 0.75,
        mask_block: int = 1,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__()
        _check("LOSS", loss, loss in LOSSES, f"one of {', '.join(LOSSES)}")
        _check("MASK_RATIO", mask_ratio, 0 <= mask_ratio <= MAX_MASK_RATIO, f"a number in [0, {MAX_MASK_RATIO}]")
        _check("MASK_BLOCK", mask_block, mask_block >= 1, "a side in patches, >= 1")
        can_weigh = pixel_weight == 0 or not isinstance(target, PixelTarget)
        _check("PIXEL_WEIGHT", pixel_weight, pixel_weight >= 0 and can_weigh, ">= 0, and 0 if TARGET is 'pixel'")
        self.backbone = nn.ModuleDict({"net": encoder})
        self.decoder = decoder
        self.target = target
        self.norm_target = norm_target
        self.loss = LOSSES[loss]
        self.pixel_weight = pixel_weight
        self.mask_ratio = mask_ratio
        self.mask_block = mask_block
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)
        _fix_positions(encoder)
        self.update_target(0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from ``MODEL.MIM`` and ``MODEL.VIT``."""
        mim, in_chans = cfg.MODEL.MIM, len(cfg.MODEL.PIXEL_MEAN)
        encoder = ViT(cfg, ShapeSpec(channels=in_chans))
        target = build_target(mim.TARGET, encoder, in_chans, mim.TARGET_LAYERS, mim.EMA_DECAY)
        out_dim = target.dim + (in_chans * PATCH_SIZE**2 if mim.PIXEL_WEIGHT else 0)
        return {
            "encoder": encoder,
            "decoder": build_decoder(encoder, out_dim, mim.DECODER_DIM, mim.DECODER_DEPTH, mim.DECODER_HEADS),
            "target": target,
            "norm_target": mim.NORM_TARGET,
            "loss": mim.LOSS,
            "pixel_weight": mim.PIXEL_WEIGHT,
            "mask_ratio": mim.MASK_RATIO,
            "mask_block": mim.MASK_BLOCK,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def encoder(self) -> ViT:
        """The ViT, whose parameters the detector takes over."""
        return cast(ViT, self.backbone["net"])

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training mode; else what ``inference`` returns for every image.

        Args:
            batched_inputs: Detectron2's dicts, with ``image``: (C, p·H, p·W), grey levels; of one size in training.
        """
        if not self.training:
            return [self.inference(image["image"]) for image in batched_inputs]
        sizes = {tuple(image["image"].shape) for image in batched_inputs}
        if len(sizes) > 1:
            raise ValueError(
                f"found images of the sizes {sorted(sizes)} in one batch, expected one size: pre-training crops to "
                "MODEL.VIT.IMG_SIZE with implantdet.data.unlabelled.UnlabelledMapper"
            )
        images = self.normalize(torch.stack([image["image"] for image in batched_inputs]))
        grid = (images.shape[-2] // PATCH_SIZE, images.shape[-1] // PATCH_SIZE)
        return self.losses(images, sample_mask(len(images), grid, self.mask_ratio, self.mask_block, images.device))

    def update_target(self, step: int) -> None:
        """Let the target follow the encoder; after every step of the optimizer, and with 0 after weights were loaded.

        Args:
            step: number of steps so far.
        """
        self.target.update(self.encoder, step)

    def normalize(self, images: Tensor) -> Tensor:
        """Images (…, C, H, W) of grey levels, on the model's device and normalised.

        Raises:
            ValueError: they have another number of channels than the model.
        """
        if images.shape[-3] != len(self.pixel_mean):
            raise ValueError(
                f"found images with {images.shape[-3]} channels, expected {len(self.pixel_mean)}, as MODEL.PIXEL_MEAN "
                "has: set it, and MODEL.PIXEL_STD, to as many values, or use implantdet's mappers, which go by it"
            )
        return (images.to(self.pixel_mean.device) - self.pixel_mean) / self.pixel_std

    def losses(self, images: Tensor, mask: PatchMask) -> dict[str, Tensor]:
        """The losses for given masks.

        Args:
            images: (N, C, p·H, p·W), normalised.
            mask: the hidden patches.

        Returns:
            ``loss_mim`` and, with a ``pixel_weight``, ``loss_pixel``.
        """
        predictions, pixels = self.predict(images, mask)
        losses = {"loss_mim": self.loss(predictions.float(), gather_tokens(self.targets(images), mask.predicted))}
        if self.pixel_weight:
            wanted = standardize(gather_tokens(patchify(images), mask.predicted))
            losses["loss_pixel"] = self.pixel_weight * F.mse_loss(pixels.float(), wanted)
        return losses

    def predict(self, images: Tensor, mask: PatchMask) -> tuple[Tensor, Tensor]:
        """Predictions for ``mask.predicted``: of the target (N, M, T), and of the pixels (N, M, p·p·C or 0)."""
        tokens, grid = self.encoder.embed_patches(images)
        predictions = self.decoder(self.encoder, tokens, mask, grid)
        return predictions[..., : self.target.dim], predictions[..., self.target.dim :]

    @torch.no_grad()
    def targets(self, images: Tensor) -> Tensor:
        """What the loss compares with, for all patches: (N, L, T), without gradient."""
        targets = self.target(images, self.encoder).float()
        return standardize(targets) if self.norm_target else targets

    @torch.no_grad()
    def inference(self, image: Tensor) -> dict[str, Any]:
        """Features of the whole image, and predictions behind a mask that depends on the size of the image only.

        Args:
            image: (C, h, w), grey levels.

        Returns:
            ``features`` (D, ⌈h/p⌉, ⌈w/p⌉), of the image padded with the mean; and of its whole patches alone, whose
            ``grid`` is (H, W) = (⌊h/p⌋, ⌊w/p⌋), 1 at least: ``mask``, a ``PatchMask`` for one image; ``pixels``
            (L, p·p·C), normalised; if the model predicts embeddings, ``predictions`` (M, T); if it predicts pixels,
            ``pixel_predictions`` (M, p·p·C), normalised. Where these are predicted standardised, mean and deviation
            are taken from the image, as in MAE's figures.
        """
        grid = (max(image.shape[-2] // PATCH_SIZE, 1), max(image.shape[-1] // PATCH_SIZE, 1))
        images = self.normalize(image)[None]
        padded = F.pad(images, (0, -image.shape[-1] % PATCH_SIZE, 0, -image.shape[-2] % PATCH_SIZE))
        tokens, (rows, columns) = self.encoder.embed_patches(padded)
        patches = self.encoder.encode(tokens)[0, self.encoder.num_prefix_tokens :]  # without windows, as it is trained
        features = patches.unflatten(0, (rows, columns)).permute(2, 0, 1)
        images = padded[..., : grid[0] * PATCH_SIZE, : grid[1] * PATCH_SIZE]
        generator = torch.Generator().manual_seed(0)
        mask = sample_mask(1, grid, self.mask_ratio, self.mask_block, images.device, generator)
        predictions, pixels = self.predict(images, mask)
        result = {
            "features": features,
            "grid": grid,
            "mask": mask,
            "pixels": patchify(images)[0],
        }
        predicts_pixels = isinstance(self.target, PixelTarget)
        if not predicts_pixels:
            result["predictions"] = predictions[0]
        if predicts_pixels or self.pixel_weight:
            pixels = predictions[0] if predicts_pixels else pixels[0]
            if self.pixel_weight or self.norm_target:
                pixels = restore(pixels, result["pixels"][mask.predicted[0]])
            result["pixel_predictions"] = pixels
        return result


def restore(standardized: Tensor, pixels: Tensor) -> Tensor:
    """Undo ``standardize`` with the mean and the deviation of ``pixels``; both (M, p·p·C)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return standardized * (variance + 1e-6).sqrt() + mean


@torch.no_grad()
def _fix_positions(encoder: ViT) -> None:
    """Set the encoder's positions to sines and cosines (prefix tokens: zeros), and keep them from training."""
    if encoder.pos_embed is None:
        raise ValueError("MODEL.VIT.NAME: found a ViT without absolute positions; masked image modelling needs them")
    encoder.pos_embed.zero_()
    positions = sine_cosine_positions(encoder.patch_embed.grid_size, encoder.embed_dim)
    encoder.pos_embed[:, encoder.num_prefix_positions :] = positions
    encoder.pos_embed.requires_grad_(False)


def _check(key: str, found: object, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"MODEL.MIM.{key}: found {found!r}, expected {expected}")
