"""Training: the Trainer, its schedule and hooks."""
