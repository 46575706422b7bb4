"""Judging what was trained: reconstructions of a codebook, obedience to captions, likelihood."""
