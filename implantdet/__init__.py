"""implantdet: find dental implants in radiographs, describe their design and name their system.

Importing this package adds its components to Detectron2's registries, in memory, and does nothing else.
"""

__version__ = "0.1.0"
