"""Training: one loop for every part of every family, around an engine that owns the optimiser."""
