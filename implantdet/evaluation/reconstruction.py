"""What a masked image model sees behind hidden patches (the paper's figure 4), and its PSNR.

Letters: L patches of an image, M hidden ones, P pixels of a patch (times channels), T channels of a target.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge
from torch import Tensor

from implantdet.data.files import written_whole
from implantdet.data.idd import write_json
from implantdet.modeling.masked_image_model import restore
from implantdet.modeling.mim_targets import standardize, unpatchify

logger = logging.getLogger(__name__)

_TENSORS = ("pixels", "predictions", "pixel_predictions")
_GREY = 127.5  # what is shown in place of a hidden patch
_FLAT = 20 * math.log10(255)  # dB: an error of one grey level


class ReconstructionEvaluator(DatasetEvaluator):
    """Draws originals, masked images and reconstructions, and measures PSNR on hidden patches.

    Predicted embeddings get a decoder for the eye: ridge regression from the predictions to standardised pixels. It is
    fitted on every second image and applied to the others, and the other way round: so it shows what the predictions
    hold, which early in a training are much flatter than the targets. A model that predicts embeddings and pixels is
    drawn by both. Mean and deviation of a standardised patch are taken from the original, as in MAE's figures. What
    these alone give is the PSNR of flat patches, each of its true mean: that a model sees anything shows above it.
    Images whose hidden patches are flat themselves, to less than a grey level, are drawn, but not measured.

    ``evaluate`` writes ``reconstruction.png`` and ``reconstruction.json`` with ``PSNR_pixels``, ``PSNR_embeddings`` (as
    far as the model predicts them) and ``PSNR_flat``, and keeps the drawn images (grey levels) in ``columns_``.

    Args:
        output_dir: folder of the files, created if it is missing.
        pixel_mean: ``MODEL.PIXEL_MEAN``.
        pixel_std: ``MODEL.PIXEL_STD``.
        max_images: images that are reconstructed, the first ones of the dataset, however many processes share it.
        num_drawn: images that are drawn, the first ones.
    """

    def __init__(
        self,
        output_dir: str | Path,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        max_images: int = 32,
        num_drawn: int = 4,
    ) -> None:
        self._output_dir = Path(output_dir)
        self._mean = torch.tensor(pixel_mean)
        self._std = torch.tensor(pixel_std)
        self._max_images = max_images
        self._num_drawn = num_drawn
        self._outputs: list[dict[str, Any]] = []
        self.columns_: dict[str, list[np.ndarray]] = {}

    def reset(self) -> None:
        """Forget the images of the last round."""
        self._outputs = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Keep what is needed of ``MaskedImageModel.inference``."""
        for output in outputs[: self._max_images - len(self._outputs)]:
            tensors = {key: value.cpu().float() for key, value in output.items() if key in _TENSORS}
            hidden = output["mask"].predicted[0].cpu()
            self._outputs.append(tensors | {"grid": output["grid"], "hidden": hidden})

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Reconstruct, draw and measure; on the main process, elsewhere nothing."""
        comm.synchronize()
        gathered = comm.gather(self._outputs, dst=0)
        # Every process has as many of its share, and the shares come in the order of the dataset.
        outputs = list(itertools.chain.from_iterable(gathered))[: self._max_images]
        if not comm.is_main_process() or not outputs:
            return {}
        predicted = reconstructions(outputs)
        hidden = [output["pixels"][output["hidden"]] for output in outputs]
        flat = [pixels.mean(dim=-1, keepdim=True).expand_as(pixels) for pixels in hidden]
        compared = {f"PSNR_{name}": images for name, images in predicted.items()} | {"PSNR_flat": flat}
        ratios = [
            {key: psnr(self._levels(images[index]), self._levels(truth)) for key, images in compared.items()}
            for index, truth in enumerate(hidden)
        ]
        measured = [found for found in ratios if found["PSNR_flat"] < _FLAT]
        results = {key: fmean(found[key] for found in measured) for key in compared} if measured else {}
        drawn = outputs[: self._num_drawn]
        self.columns_ = {
            "original": [self._image(output) for output in drawn],
            "masked": [self._image(output, torch.tensor(_GREY)) for output in drawn],
        }
        for name, images in predicted.items():
            pairs = zip(drawn, images, strict=False)
            self.columns_[f"by {name}"] = [self._image(output, self._levels(patches)) for output, patches in pairs]
        self._output_dir.mkdir(parents=True, exist_ok=True)
        save_figure(self._output_dir / "reconstruction.png", self.columns_)
        write_json(self._output_dir / "reconstruction.json", {"num_images": len(outputs), "reconstruction": results})
        logger.info("Hidden patches of %d images, in dB: %s", len(measured), results)
        return {"reconstruction": results}

    def _levels(self, patches: Tensor) -> Tensor:
        """Grey levels of normalised patches (…, P)."""
        pixels = patches.unflatten(-1, (-1, len(self._mean))) * self._std + self._mean
        return pixels.flatten(-2).clamp(0, 255)

    def _image(self, output: dict[str, Any], hidden: Tensor | None = None) -> np.ndarray:
        """(H, W) or (H, W, 3) grey levels, with others in the hidden patches if they are given."""
        levels = self._levels(output["pixels"])
        if hidden is not None:
            levels[output["hidden"]] = hidden
        image = unpatchify(levels[None], output["grid"])[0]
        return image.permute(1, 2, 0).squeeze(-1).round().byte().numpy()


def reconstructions(outputs: Sequence[dict[str, Any]]) -> dict[str, list[Tensor]]:
    """Normalised pixels of the hidden patches of every image, (M, P), by what was predicted: pixels, embeddings.

    Args:
        outputs: for every image ``pixels`` (L, P) and ``hidden`` (M,); of a model that predicts pixels
            ``pixel_predictions`` (M, P), and of one that predicts embeddings ``predictions`` (M, T).
    """
    found = {}
    if "pixel_predictions" in outputs[0]:
        found["pixels"] = [output["pixel_predictions"] for output in outputs]
    if "predictions" in outputs[0]:
        found["embeddings"] = decode(outputs)
    return found


def decode(outputs: Sequence[dict[str, Any]]) -> list[Tensor]:
    """Normalised pixels (M, P) from predicted embeddings; ``outputs`` as those of ``reconstructions``."""
    decoded: list[Tensor] = [torch.empty(0)] * len(outputs)
    for half in (0, 1):
        others = outputs[1 - half :: 2] or outputs  # of a single image, its own predictions
        decoder = Ridge(alpha=1.0, solver="svd").fit(  # the predictions may be linearly dependent
            torch.cat([output["predictions"] for output in others]).numpy(),
            torch.cat([standardize(output["pixels"][output["hidden"]]) for output in others]).numpy(),
        )
        for index in range(half, len(outputs), 2):
            output = outputs[index]
            pixels = torch.from_numpy(decoder.predict(output["predictions"].numpy())).float()
            decoded[index] = restore(pixels, output["pixels"][output["hidden"]])
    return decoded


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of grey levels from 0 to 255; equal images: infinity."""
    error = float((image - reference).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def save_figure(path: Path, columns: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write a picture of captioned columns of images; all columns have the same number of images."""
    num_rows = max(len(images) for images in columns.values())
    figure = Figure(figsize=(2.5 * len(columns), 2.5 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, len(columns), squeeze=False)
    for col, (caption, images) in enumerate(columns.items()):
        axes[0, col].set_title(caption)
        for row, image in enumerate(images):
            axes[row, col].imshow(image, cmap="gray", vmin=0, vmax=255)
    for axis in axes.flat:
        axis.set_axis_off()
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
