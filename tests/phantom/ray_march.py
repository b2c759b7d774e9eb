"""An implant's shadow by brute force: walk along every ray and ask the solid's definition at each step."""

from dataclasses import replace

import numpy as np


def march(solid, u, s, tilt, spin, step=0.04):
    """Path lengths (mm) through the outer body and through metal alone, for rays at (u, s)."""
    reach = solid.length * abs(np.sin(tilt)) + 5.0
    outer, metal = np.zeros(u.shape), np.zeros(u.shape)
    for t in np.arange(-reach, reach, step):
        # The ray leans against the solid's frame by the tilt; then undo the spin about the axis.
        y, z = t * np.cos(tilt) - s * np.sin(tilt), s * np.cos(tilt) + t * np.sin(tilt)
        solid_x = u * np.cos(spin) + y * np.sin(spin)
        solid_y = y * np.cos(spin) - u * np.sin(spin)
        rho = np.hypot(solid_x, solid_y)
        body = rho < solid.radius(z, np.arctan2(solid_y, solid_x))
        outer += body * step
        metal += (body & (rho >= solid.bore_radius(z)) & (np.abs(solid_x) >= solid.hole_half_width(z))) * step
    return outer, metal


def plain_line(line, **changes):
    """The line without collar, thread, taper and cavities, but for the changes."""
    bare = {
        "collar": (0.0, 1.0),
        "taper": (0.0, 0.0, 1.0),
        "thread": ("v_shaped", 1.0, 0.05, 1),
        "thread_from": 100.0,
        "microthread": (0.0, 0.0),
        "bore": (0.0, 0.0, 0.0),
        "grooves": 0,
        "hole": "none",
        "apex": ("flat", 0.05),
        "ring": (0.0, 0.0),
    }
    return replace(line, **(bare | changes))
