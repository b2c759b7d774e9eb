"""From parts to implants: grouping, inference of missing parts, ranking of systems."""
