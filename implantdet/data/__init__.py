"""Datasets: the IDD format, what comes into it, and what the trainer gets out of it."""
