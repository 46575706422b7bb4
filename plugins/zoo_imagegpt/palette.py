"""The palette: every pixel as the nearest of K colours, found by k-means on the pictures at hand.

Letters: B pictures, H W pixels, N = H*W codes, K colours. Colours are in [-1, 1].

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020, section 3.2
[2] github.com/openai/image-gpt, src/utils.py and src/run.py: nearest colour and decoding
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import BadData, NotReady, PartMismatch
from zoo.interfaces import Dataset, Grid
from zoo.parts import Facts
from zoo.rng import Rng
from zoo_imagegpt import configs
from zoo_imagegpt.clusters import check, find_file

AT_ONCE = 2**24
"""Distances computed at a time, which bounds the memory of `encode`: 64 MiB in single precision."""

READ = 64
"""Pictures the fit reads at a time."""


class Palette(nn.Module):
    """Pictures to one colour number a pixel, and back. Its only state is the table of colours."""

    colours: Tensor
    """[K,3] in [-1, 1]; NaN before the fit. Where pictures had fewer colours, the last ones repeat."""

    def __init__(self, config: configs.Palette) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.register_buffer("colours", torch.full((config.vocab_size, 3), math.nan, dtype=torch.float32))

    @property
    def ready(self) -> bool:
        """True once fitted or loaded."""
        return not self.colours.is_meta and not bool(self.colours.isnan().any())

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary, and a grid of one code a pixel."""
        return self.config.facts(image_size)

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return the one grid, the picture's own."""
        return ((height, width),)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B,N] of images [B,3,H,W]: the colour with the least squared distance, the first of equals.

        Raises:
            NotReady: the palette is not fitted.
        """
        colours = self._ready()
        pixels = images.movedim(1, -1).to(colours.dtype).mul(2).sub_(1)
        some = pixels.reshape(-1, 3).split(max(1, AT_ONCE // self.vocab_size))
        codes = torch.cat([_nearest(pixel, colours) for pixel in some])
        return self._ordered(codes.view(pixels.shape[:-1])).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return images [B,3,H,W] of codes [B,N], in steps of 1/255 [2].

        Raises:
            NotReady: the palette is not fitted.
            PartMismatch: more than one grid, or one of another size.
        """
        if len(grids) != 1 or grids[0][0] * grids[0][1] != codes.shape[1]:
            raise PartMismatch(f"a palette paints one grid of {codes.shape[1]} codes, and was given {grids}")
        colours = self._ready()[self._ordered(codes.view(-1, *grids[0]))]
        return colours.add(1).mul_(127.5).round_().div_(255).clamp_(0, 1).movedim(-1, 1).contiguous()

    def vocabulary_files(self, place: Path) -> dict[str, Path]:
        """Return the public file that holds colours; see `zoo_imagegpt.clusters.find_file`."""
        return find_file(place)

    def fit(self, dataset: Dataset, *, seed: int) -> None:
        """Find the colours by k-means over the pixels of the dataset's pictures.

        Args:
            dataset: of it `config.pictures` pictures are read, and of those `config.pixels` pixels used.
            seed: draws pictures and pixels, and the first colours of k-means.

        Raises:
            BadData: the dataset has no pictures.
        """
        pixels = list(_pixels(dataset, self.config, seed))
        if not pixels:
            raise BadData(f"{dataset.uri}: no pictures, so there is nothing to fit a palette on")
        distinct, counts = np.unique(np.concatenate(pixels), axis=0, return_counts=True)
        found = distinct.astype(np.float64)
        if len(distinct) > self.vocab_size:
            found = _clusters(found, counts, self.vocab_size, seed)
        rows = np.minimum(np.arange(self.vocab_size), len(found) - 1)
        colours = torch.from_numpy(found[rows] / 127.5 - 1).float().clamp_(-1, 1)
        self.colours = colours.to(None if self.colours.is_meta else self.colours.device)

    def _ordered(self, grid: Tensor) -> Tensor:
        """Return codes [B,H,W] from picture order to reading order, or back: a snake turns every other row round."""
        if self.config.order == "raster":
            return grid
        grid = grid.clone()
        grid[:, 1::2] = grid[:, 1::2].flip(2)
        return grid

    def _ready(self) -> Tensor:
        if not self.ready:
            raise NotReady(
                "the palette is not fitted: training a run's 'codebook' part does it; a published one is read by "
                "`zoo import RUN FILE --part codebook --out RUN`"
            )
        return self.colours

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the colours, having looked at them."""
        colours = state_dict.get(prefix + "colours")
        if colours is not None and not colours.is_meta:
            check(colours, self.vocab_size)
            place = None if self.colours.is_meta else self.colours.device  # built on meta: stay where they were read
            self.colours = colours.detach().to(place, self.colours.dtype, copy=True)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _nearest(pixels: Tensor, colours: Tensor) -> Tensor:
    """Return the nearest colour [n] of pixels [n,3]; channel by channel, so that equal colours are equally near."""
    distance = (pixels[:, :1] - colours[:, 0]).square_()
    for channel in (1, 2):
        distance.add_((pixels[:, channel : channel + 1] - colours[:, channel]).square_())
    return distance.argmin(1)


def _pixels(dataset: Dataset, config: configs.Palette, seed: int) -> Iterator[np.ndarray]:
    """Yield uint8 pixels [n,3] of some pictures, as many of each."""
    if not len(dataset):
        return
    order = Rng(seed, [0]).fork("palette").uniform(len(dataset)).argsort()[0]
    chosen = order[: config.pictures].sort().values
    share = -(-config.pixels // len(chosen))
    for rows in chosen.split(READ):
        images = dataset.read(rows.tolist()).images
        if images is None:
            return
        flat = images.flatten(2).mul(255).round_().to(torch.uint8).movedim(1, -1)
        if flat.shape[1] > share:
            drawn = Rng(seed, rows).fork("pixels").integers(flat.shape[1], share)
            flat = flat.gather(1, drawn[..., None].expand(-1, -1, 3))
        yield flat.reshape(-1, 3).numpy()


def _clusters(pixels: np.ndarray, counts: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Return k-means centres [K,3] of distinct pixels [n,3] that occur so often; one thread, the same every time."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    means = KMeans(clusters, n_init=1, max_iter=100, tol=1e-4, random_state=seed % 2**32)
    with threadpool_limits(1):
        return means.fit(pixels, sample_weight=counts.astype(np.float64)).cluster_centers_
