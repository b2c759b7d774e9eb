"""From parts to implants: grouping, inference of missing parts, ranking of systems."""

from implantdet.assembly.assembler import PartAssembler

__all__ = ["PartAssembler"]
