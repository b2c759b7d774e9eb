"""Synthetic radiographs of implants whose geometry is known exactly."""
