"""Packaging of implantdet. Tool settings are in pyproject.toml, the locks of a development set-up in requirements/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "implantdet/__init__.py").read_text(encoding="utf-8")).group(1)

setup(
    name="implantdet",
    version=VERSION,
    description="Find dental implants in radiographs, describe their design and name their system: a Detectron2 plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["implantdet", "implantdet.*"]),
    package_data={"implantdet": ["*.yaml", "*/*.yaml"]},
    entry_points={"console_scripts": ["implantdet = implantdet.cli:main"]},
    # detectron2 is missing on purpose: it is not on PyPI under its name. README.md says how to install it.
    install_requires=[
        "torch>=2.5",
        "torchvision",
        "timm>=1.0",
        "fvcore",
        "iopath",
        "omegaconf",
        "cloudpickle",
        "pycocotools",
        "hotcoco>=1.3",
        "numpy",
        "opencv-python-headless",
        "scikit-learn",
        "scipy",
        "shapely",
        "matplotlib>=3.10",
        "pillow",
        "pydicom>=3",
        "highdicom",
        "pyyaml",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "dicom": ["python-gdcm"],  # decodes JPEG Lossless
        "test": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "transformers",
        ],  # ViTMAE is the reference of masked image modelling
    },
)
