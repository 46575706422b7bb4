"""Public U-Nets that read captions, for `zoo.bench.imagen`: imagen-pytorch's and diffusers'.

imagen-pytorch's, of the same width, residual blocks and attending levels, is another network. diffusers', in the form
it has for DeepFloyd IF, is ours, with as many parameters.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from zoo.errors import NotInstalled


@attrs.frozen(kw_only=True)
class Size:
    """What fixes the amount of work."""

    width: int = 64
    mults: tuple[int, ...] = (1, 2, 4)
    blocks: int = 3
    """Residual blocks a level on the way down, one more on the way up; all sides have 27 at these sizes."""
    attention: tuple[int, ...] = (1, 2, 4)
    """Reductions of the sides at which there is attention."""
    side: int = 32
    """Of the picture."""
    text_width: int = 512
    tokens: int = 32

    @property
    def attends(self) -> tuple[bool, ...]:
        """Whether each level has attention, fine to coarse."""
        return tuple(2**i in self.attention for i in range(len(self.mults)))

    def sizes(self, batch: int) -> dict[str, int]:
        """Return what a row says."""
        said = {"width": self.width, "levels": len(self.mults), "blocks": self.blocks, "side": self.side}
        return {**said, "attending": len(self.attention), "tokens": self.tokens, "batch": batch}


class ImagenPytorch(nn.Module):
    """imagen-pytorch's, as it comes: attention once a level and side, captions resampled to 32 tokens.

    Its blocks on the way down have the width of the level above; each level has one block more on the way down and the
    whole one at the end, where ours has blocks that resample.

    Raises:
        NotInstalled: it is missing.
    """

    name = "imagen-pytorch"

    def __init__(self, size: Size) -> None:
        super().__init__()
        with contextlib.redirect_stdout(sys.stderr):  # it prints advice, and the rows may be read as JSON
            self.net = _imagen_pytorch().Unet(
                dim=size.width, dim_mults=size.mults, num_resnet_blocks=size.blocks, text_embed_dim=size.text_width,
                max_text_len=size.tokens, layer_attns=size.attends, layer_cross_attns=size.attends,
            )  # fmt: skip

    def forward(self, z: Tensor, logsnr: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Return the predicted noise, in training, of z [B,3,H,W] at log-SNRs [B] with text [B,T,D] and its mask."""
        return self.net(z, logsnr, text_embeds=text, text_mask=mask, cond_drop_prob=0.1)

    def guided(self, z: Tensor, logsnr: Tensor, text: Tensor, mask: Tensor, guidance: float) -> Tensor:
        """Return both predictions put together."""
        return self.net.forward_with_cond_scale(
            z, logsnr, text_embeds=text, text_mask=mask, cond_scale=guidance, remove_parallel_component=False
        )


class Diffusers(nn.Module):
    """diffusers' `UNet2DConditionModel` in IF's form; both predictions of guidance are made in one batch.

    Raises:
        NotInstalled: it is missing.
    """

    name = "diffusers"

    def __init__(self, size: Size) -> None:
        super().__init__()
        try:
            without_broken_torchvision()
            from diffusers import UNet2DConditionModel
        except ImportError as error:
            raise NotInstalled(f"this benchmark needs diffusers: pip install 'image-zoo[bench]' ({error})") from error
        down = ["SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in size.attends]
        up = ["SimpleCrossAttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in reversed(size.attends)]
        self.net = UNet2DConditionModel(
            sample_size=size.side, in_channels=3, out_channels=3, down_block_types=down, up_block_types=up,
            mid_block_type="UNetMidBlock2DSimpleCrossAttn", layers_per_block=size.blocks,
            block_out_channels=[size.width * mult for mult in size.mults], attention_head_dim=64,
            cross_attention_dim=size.width, encoder_hid_dim=size.text_width, encoder_hid_dim_type="text_proj",
            addition_embed_type="text", addition_embed_type_num_heads=8, resnet_time_scale_shift="scale_shift",
            act_fn="silu", cross_attention_norm="group_norm", norm_eps=1e-5,
        )  # fmt: skip

    def forward(self, z: Tensor, logsnr: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """Return the predicted noise; see `ImagenPytorch.forward`."""
        return self.net(z, logsnr, encoder_hidden_states=text).sample

    def guided(self, z: Tensor, logsnr: Tensor, text: Tensor, mask: Tensor, guidance: float) -> Tensor:
        """Return both predictions put together."""
        both = self(torch.cat((z, z)), torch.cat((logsnr, logsnr)), torch.cat((text, torch.zeros_like(text))), mask)
        known, null = both.chunk(2)
        return torch.lerp(null, known, guidance)


PEERS: Mapping[str, type[Any]] = {peer.name: peer for peer in (ImagenPytorch, Diffusers)}


def _imagen_pytorch() -> Any:
    """Return the module with its networks, without what its trainer and data need.

    Raises:
        NotInstalled: it, or what it needs, is missing.
    """
    missing = "this benchmark needs imagen-pytorch: pip install 'image-zoo[bench]'"
    found = sys.modules.get("imagen_pytorch.imagen_pytorch")
    if found is not None:
        return found
    spec = importlib.util.find_spec("imagen_pytorch")
    if spec is None or spec.submodule_search_locations is None:
        raise NotInstalled(missing)
    try:
        without_broken_torchvision()
        encoder: Any = importlib.import_module("transformers").T5Config
    except ImportError as error:
        raise NotInstalled(f"{missing} ({error})") from error
    package: Any = types.ModuleType("imagen_pytorch")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["imagen_pytorch"] = package
    # A default of its networks asks the network for the width of a text encoder, which is not used here.
    encoder.from_pretrained = classmethod(lambda cls, name: types.SimpleNamespace(d_model=768))
    try:
        return importlib.import_module("imagen_pytorch.imagen_pytorch")
    except ImportError as error:
        raise NotInstalled(f"{missing} ({error})") from error
    finally:
        del encoder.from_pretrained  # its own, over the inherited one


def without_broken_torchvision() -> None:
    """Put empty modules in the place of a torchvision that was built for another torch; networks do without it."""
    try:
        importlib.import_module("torchvision")
        return
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    for name, attribute in (("transformers", "T5EncoderModel"), ("diffusers", "UNet2DConditionModel")):
        with contextlib.suppress(ImportError):
            getattr(importlib.import_module(name), attribute)  # looks for it once, and does without
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("transforms", "utils"):
        setattr(sys.modules["torchvision"], name, sys.modules[f"torchvision.{name}"])
