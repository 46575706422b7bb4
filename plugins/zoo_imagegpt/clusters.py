"""Public files of a palette, and back. A "state dict" of theirs is the file's bytes, uint8, by its name.

Letters: K colours.

[1] transformers, models/imagegpt/image_processing_imagegpt.py: `clusters` in `preprocessor_config.json`
[2] github.com/openai/image-gpt, src/run.py: `kmeans_centers.npy`
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import BadWeights, ConfigError
from zoo_imagegpt.configs import Palette

State = Mapping[str, Tensor]

ARRAY, PROCESSOR = "kmeans_centers.npy", "preprocessor_config.json"
"""Names of the files, [2] and [1]."""


def find_file(place: Path) -> dict[str, Path]:
    """Return the file that holds the colours, by the name that the functions below know it by.

    Args:
        place: a folder that has one of the public files, or such a file under any name.

    Raises:
        BadWeights: there is none.
    """
    files = [place] if place.is_file() else [place / name for name in (ARRAY, PROCESSOR)]
    for file in files:
        for name in (ARRAY, PROCESSOR):
            if file.is_file() and file.suffix == Path(name).suffix:
                return {name: file}
    raise BadWeights(f"{place}: no palette; it is {ARRAY}, or {PROCESSOR} with 'clusters'")


def from_openai(state: State, config: Palette) -> dict[str, Tensor]:
    """Return our state dict for an array of colours [K,3] in [-1, 1].

    Raises:
        BadWeights: another file, a damaged one, or colours of another shape or range; so does the function below.
    """

    def make(content: bytes) -> Any:
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)

    return _made(state, config, ARRAY, make)


def from_transformers(state: State, config: Palette) -> dict[str, Tensor]:
    """Return our state dict for what a picture processor was configured with."""

    def make(content: bytes) -> Any:
        data = json.loads(content)
        if not isinstance(data, dict) or data.get("clusters") is None:
            raise BadWeights(f"{PROCESSOR} has no 'clusters'")
        return data["clusters"]

    return _made(state, config, PROCESSOR, make)


def to_folder(state: State, config: Palette, size: int | None) -> dict[str, Any]:
    """Return the file of a folder of [1] that holds the palette; `size` is the side of its pictures, pixels.

    Raises:
        ConfigError: the palette is read as a snake, which [1] does not know.
    """
    if config.order != "raster":
        raise ConfigError("order: transformers reads pixels in raster order, this palette as a snake")
    side = size or 32
    processor = {
        "image_processor_type": "ImageGPTImageProcessor",
        "clusters": state["colours"].tolist(),
        "do_color_quantize": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 2,
        "size": {"height": side, "width": side},
    }
    return {PROCESSOR: processor}


def _made(state: State, config: Palette, name: str, make: Any) -> dict[str, Tensor]:
    """Return the state dict that `make` makes of the file's bytes; on the meta device, of its name alone."""
    if state.keys() != {name}:
        raise BadWeights(f"a palette's file is {name}, this is {', '.join(sorted(state))}")
    content = state[name]
    if content.is_meta:
        return {"colours": torch.empty(config.vocab_size, 3, device="meta")}
    try:
        array = np.asarray(make(content.numpy().tobytes()), dtype=np.float32)
    except (ValueError, TypeError, EOFError) as error:
        raise BadWeights(f"holds no table of numbers ({' '.join(str(error).split())[:200]})") from error
    colours = torch.from_numpy(array)
    check(colours, config.vocab_size)
    return {"colours": colours}


def check(colours: Tensor, count: int) -> None:
    """Refuse what is no palette of this many colours.

    Raises:
        BadWeights: another shape than [K,3], or values outside of [-1, 1]; NaN, of a palette not fitted, may pass.
    """
    if tuple(colours.shape) != (count, 3):
        shape = list(colours.shape)
        hint = f"; for {shape[0]} colours add --set vocab_size={shape[0]}" if shape[1:] == [3] and shape[0] > 1 else ""
        raise BadWeights(f"a palette of {count} colours has shape {[count, 3]}, this one {shape}{hint}")
    if bool((colours.abs() > 1 + 1e-6).any()):
        low, high = colours.aminmax()
        raise BadWeights(f"a palette's colours lie in [-1, 1], these in [{float(low):.3g}, {float(high):.3g}]")
