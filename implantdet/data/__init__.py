"""Datasets: the IDD format, what comes into it, and what the trainer gets out of it."""

from implantdet.data.dataset_mapper import RadiographMapper
from implantdet.data.register import register_idd

__all__ = ["RadiographMapper", "register_idd"]
