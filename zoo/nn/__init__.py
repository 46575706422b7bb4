"""Layers and numerics shared by two or more plugins."""

from zoo.nn.residual import Residual, residuals

__all__ = ["Residual", "residuals"]
