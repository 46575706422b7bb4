"""The papers' crop laws, by name: how a picture of any size becomes the square a part is trained on.

A law is `(picture, size, u) -> uint8 [size, size, 3]`; `u` are the numbers in (0, 1) it may use, so that a row's
crop depends on the sample alone. Where a paper states its law for 256 px, the numbers scale with `size / 256`.

[1] A. Ramesh et al.: Zero-shot text-to-image generation. arXiv:2102.12092, listings 1 and 2.
[2] OpenAI's code for [1], the usage notebook.
[3] M. Chen et al.: Generative pretraining from pixels. ICML 2020, section 3.
[4] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748 (the recipe of
    J. Yan et al.: Diffusion models without attention. arXiv:2311.18257).
[5] C. Saharia et al.: Photorealistic text-to-image diffusion models. arXiv:2205.11487.

A resampling choice the papers leave open: TensorFlow's AREA of [1] is Pillow's BOX here, without `align_corners`.
A picture too small for a paper's law is enlarged to the least size the law can work on, except by `dalle-eval`.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from PIL import Image

from zoo.errors import BadData, UnknownName

Resampling = Image.Resampling
_LONGEST = 8  # times the short side: a 1 x 100000 strip must not become 256 x 25600000 on its way to a square


@attrs.frozen
class Transform:
    """A crop law."""

    name: str
    draws: int
    """How many random numbers one picture takes."""
    law: Callable[[Image.Image, int, np.ndarray], Image.Image]

    @property
    def stochastic(self) -> bool:
        """True when the law draws random numbers."""
        return self.draws > 0

    def __call__(self, picture: Image.Image, size: int, u: np.ndarray) -> np.ndarray:
        """Return uint8 [size,size,3] of an RGB picture; `u` has `draws` numbers in (0, 1).

        Raises:
            BadData: the law refuses a picture this small (`dalle-eval`).
        """
        return np.asarray(self.law(picture, size, u))


def get(name: str) -> Transform:
    """Return the transform of this name, or raise UnknownName."""
    if name not in TRANSFORMS:
        raise UnknownName("transform", name, TRANSFORMS, hint=f"known are {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name]


def _between(u: float, low: int, high: int) -> int:
    """Return a whole number of [low, high], uniform for uniform u."""
    return min(high, low + int(u * (high - low + 1)))


def _window(picture: Image.Image, left: int, top: int, side: int) -> Image.Image:
    return picture.crop((left, top, left + side, top + side))


def _centre(picture: Image.Image, side: int) -> Image.Image:
    width, height = picture.size
    return _window(picture, round((width - side) / 2), round((height - side) / 2), side)


def _random_window(picture: Image.Image, side: int, u: np.ndarray) -> Image.Image:
    width, height = picture.size
    return _window(picture, _between(u[0], 0, width - side), _between(u[1], 0, height - side), side)


def _short_side(picture: Image.Image, side: int, how: Resampling) -> Image.Image:
    """Resize so that the short side has `side` pixels; strips longer than 8:1 lose their ends first."""
    width, height = picture.size
    short = min(width, height)
    if max(width, height) > _LONGEST * short:
        w, h = min(width, _LONGEST * short), min(height, _LONGEST * short)
        left, top = (width - w) // 2, (height - h) // 2
        picture, width, height = picture.crop((left, top, left + w, top + h)), w, h
    scale = side / short
    return _resize(picture, max(side, round(scale * width)), max(side, round(scale * height)), how)


def _resize(picture: Image.Image, width: int, height: int, how: Resampling) -> Image.Image:
    return picture if picture.size == (width, height) else picture.resize((width, height), how)


def _mirror(picture: Image.Image, u: float) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if u < 0.5 else picture


def _fit(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """Short side to `size`, centre crop. A picture that is `size` x `size` already stays as it is."""
    return _centre(_short_side(picture, size, Resampling.LANCZOS), size)


def _flip(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """`fit`, mirrored half of the time."""
    return _mirror(_fit(picture, size, u), u[0])


def _crop(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """A random window at the picture's own scale, as super-resolution models are trained on ([5] section 2.4)."""
    if min(picture.size) < size:
        picture = _short_side(picture, size, Resampling.LANCZOS)
    return _random_window(picture, size, u)


def _dvae(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[1] listing 1: random full square, side to U[9/8, 12/8] size (no enlargement), random window, mirror."""
    short = min(picture.size)
    picture = _random_window(picture, short, u[0:2])
    low, high = (max(size, min(short, round(k / 8 * size))) for k in (9, 12))
    side = _between(u[2], low, high)
    return _mirror(_random_window(_resize(picture, side, side, Resampling.BOX), size, u[3:5]), u[5])


def _dalle_prior(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[1] listing 2: full square from the middle quarter of the slack, side to U[1, 9/8] size, random window.

    Never mirrored: the picture may hold text.
    """
    short = min(picture.size)
    offsets = []
    for slack, number in zip((picture.width - short, picture.height - short), u[0:2], strict=True):
        first = 3 * slack // 8
        offsets.append(_between(number, first, max(first, 5 * slack // 8 - 1)))
    picture = _window(picture, offsets[0], offsets[1], short)
    side = _between(u[2], size, max(size, min(short, round(9 / 8 * size))))
    return _random_window(_resize(picture, side, side, Resampling.BOX), size, u[3:5])


def _dalle_eval(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[2]: Lanczos to the short side, centre crop; a picture whose short side is less than `size` is refused."""
    if min(picture.size) < size:
        width, height = picture.size
        raise BadData(f"transform 'dalle-eval' takes pictures of {size} px or more, not {width} x {height}")
    return _fit(picture, size, u)


def _scaled(size: int, pixels: int) -> int:
    """Return [3]'s number of pixels; above 224 px of input they grow with it, so that the last step never enlarges."""
    return round(pixels * max(1.0, size / 224))


def _imagegpt(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[3]: short side to U[256, 384], random 224 window, then down to the input resolution."""
    side = _between(u[0], _scaled(size, 256), _scaled(size, 384))
    picture = _random_window(_short_side(picture, side, Resampling.BICUBIC), _scaled(size, 224), u[1:3])
    return _resize(picture, size, size, Resampling.BOX)


def _imagegpt_eval(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[3]: short side to 224, centre crop, then down to the input resolution."""
    side = _scaled(size, 224)
    return _resize(_centre(_short_side(picture, side, Resampling.BICUBIC), side), size, size, Resampling.BOX)


def _imagegpt_finetune(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[3], CIFAR: 4 px (of 32) of reflected border, random window, mirror."""
    pad = max(1, round(size / 8))
    pixels = np.asarray(_fit(picture, size, u))
    bordered = Image.fromarray(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="reflect"))
    return _mirror(_random_window(bordered, size, u[0:2]), u[2])


def _dit(picture: Image.Image, size: int, u: np.ndarray) -> Image.Image:
    """[4]: halve by boxes while twice too large, bicubic to the short side, centre crop, mirror."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Resampling.BOX)
    return _mirror(_centre(_short_side(picture, size, Resampling.BICUBIC), size), u[0])


TRANSFORMS = {
    t.name: t
    for t in (
        Transform("fit", 0, _fit),
        Transform("flip", 1, _flip),
        Transform("crop", 2, _crop),
        Transform("dvae", 6, _dvae),
        Transform("dalle-prior", 5, _dalle_prior),
        Transform("dalle-eval", 0, _dalle_eval),
        Transform("imagegpt", 3, _imagegpt),
        Transform("imagegpt-eval", 0, _imagegpt_eval),
        Transform("imagegpt-finetune", 3, _imagegpt_finetune),
        Transform("dit", 1, _dit),
    )
}
"""Every transform by name."""
