"""Whole systems made of parts. A prompt walks tokenizer -> prior or denoisers -> codebook or latent -> reranker;
nothing looks back."""

from zoo.generators.autoregressive import AutoregressiveGenerator
from zoo.generators.cascade import CascadeGenerator
from zoo.generators.system import Solo, System

__all__ = ["AutoregressiveGenerator", "CascadeGenerator", "Solo", "System"]
