"""implantdet: find dental implants in radiographs, describe their design and name their system.

Importing this package adds its components to Detectron2's registries, in memory, and does nothing else.
"""

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise  # detectron2 is there; what it lacks is named by its own error
    raise ImportError(
        "implantdet needs detectron2, which is not on PyPI under its own name. Install it with\n"
        "    pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2.git\n"
        "or, without a compiler, as the section 'Installing' of README.md describes."
    ) from error

__version__ = "0.1.0"

# Each of these registers components.
from implantdet.modeling import backbone, implant_roi_heads, masked_image_model  # noqa: F401
