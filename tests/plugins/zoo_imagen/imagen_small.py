"""Small denoisers of each kind, and what they are asked."""

import torch

from zoo.interfaces import Cond
from zoo.testing.kit import stir
from zoo_imagen.configs import EfficientUNet, UNet
from zoo_imagen.model import efficient_unet, unet

SMALL = {
    "base": UNet(
        width=16, mults=(1, 2), blocks=1, attention=(2,), head_width=16, groups=8, channels=3, size=(8, 8),
        bounded=True, text_width=12, text_length=5, pool_heads=2,
    ),
    "self": EfficientUNet(
        widths=(8, 16), blocks=(1, 2), attention=("none", "self"), heads=2, groups=4, channels=3, size=(16, 16),
        bounded=True, text_width=12, text_length=5, pool_heads=2, low=8,
    ),
    "cross": EfficientUNet(
        widths=(8, 16), blocks=(1, 1), attention=("none", "cross"), heads=2, groups=4, channels=3, size=(16, 16),
        bounded=True, text_width=12, text_length=5, pool_heads=2, low=8,
    ),
}  # fmt: skip


def build(config, seed=0):
    """Return the denoiser of a config, in which nothing is zero by its initialisation, in double precision."""
    torch.manual_seed(seed)
    model = unet(config) if isinstance(config, UNet) else efficient_unet(config)
    stir(model, seed)
    return model.double()


def asked(config, dtype=torch.float64):
    """Return z, log-SNR and the condition of two rows, captions of 3 and 2 tokens."""
    source = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=source).to(dtype)

    mask = torch.arange(5) < torch.tensor([[3], [2]])
    text = normal(2, 5, 12) * mask[..., None]
    low = {"low": normal(2, 3, *config.size), "low_level": normal(2)} if config.low else {}
    return normal(2, 3, *config.size), normal(2), Cond(text=text, text_mask=mask, **low)
