"""The dVAE's weights in the authors' public layout, and back.

The authors publish two files, an encoder and a decoder, whose parameters are called `w` and `b` [1]. Here they are
one flat dict with the prefixes `encoder.` and `decoder.`, which is what `zoo.weights.read_public` makes of a folder
with both files.

[1] github.com/openai/DALL-E, dall_e/encoder.py and dall_e/decoder.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from zoo.errors import BadWeights, ConfigError, suggest
from zoo_dvae.configs import Dvae

State = Mapping[str, Tensor]
Fix = Callable[[str, Tensor], Tensor]


def from_openai(state: State, config: Dvae) -> dict[str, Tensor]:
    """Return our state dict for the authors' one.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    _same_function(config)
    return _rename(state, {theirs: ours for ours, theirs in _layers(config)}, {"w": "weight", "b": "bias"}, _to_matrix)


def to_openai(state: State, config: Dvae) -> dict[str, Tensor]:
    """Return the authors' state dict for ours; `split` parts it into their two files.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    _same_function(config)
    return _rename(state, dict(_layers(config)), {"weight": "w", "bias": "b"}, _to_kernel)


def split(state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dicts of the authors' encoder and decoder modules."""

    def strip(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}

    return strip("encoder."), strip("decoder.")


def join(encoder: State, decoder: State) -> dict[str, Tensor]:
    """Undo `split`."""
    return {f"encoder.{k}": x for k, x in encoder.items()} | {f"decoder.{k}": x for k, x in decoder.items()}


def _same_function(config: Dvae) -> None:
    """Their code knows none of these; with other values equal weights would be another function."""
    for name, neutral in {"logit_gain": 1.0, "mean": 0.0, "std": 1.0, "bottleneck": 4, "epsilon": 0.1}.items():
        if getattr(config, name) != neutral:
            raise ConfigError(f"{name}: is {getattr(config, name)}; the authors' layout has it fixed at {neutral}")


def _layers(config: Dvae) -> Iterator[tuple[str, str]]:
    """Yield (our name, their name) of every layer with a weight and a bias."""
    for side in ("encoder", "decoder"):
        yield f"{side}.input", f"{side}.blocks.input"
        for group in range(config.groups):
            for block in range(config.blocks):
                ours = f"{side}.groups.{group}.{block}"
                theirs = f"{side}.blocks.group_{group + 1}.block_{block + 1}"
                if block == 0 and _changes_width(side, group, config):
                    yield f"{ours}.skip", f"{theirs}.id_path"
                for conv in range(4):
                    yield f"{ours}.branch.{2 * conv + 1}", f"{theirs}.res_path.conv_{conv + 1}"
        yield f"{side}.output", f"{side}.blocks.output.conv"


def _changes_width(side: str, group: int, config: Dvae) -> bool:
    if group:
        return True
    return side == "decoder" and config.n_init != config.n_hid * 2 ** (config.groups - 1)


def _rename(state: State, layers: Mapping[str, str], leaves: Mapping[str, str], fix: Fix) -> dict[str, Tensor]:
    keys = {f"{a}.{p}": f"{b}.{q}" for a, b in layers.items() for p, q in leaves.items()}
    for key in keys:
        if key not in state:
            raise BadWeights(f"dVAE weights lack '{key}'{suggest(key, set(state) - set(keys))}")
    for key in state:
        if key not in keys:
            raise BadWeights(f"dVAE weights have an unexpected '{key}'{suggest(key, set(keys) - set(state))}")
    return {new: fix(new, state[old]) for old, new in keys.items()}


def _to_matrix(name: str, x: Tensor) -> Tensor:
    """The two 1x1 convolutions beside the codes are matrices here."""
    return x.flatten(1) if name in ("encoder.output.weight", "decoder.input.weight") else x


def _to_kernel(name: str, x: Tensor) -> Tensor:
    return x[:, :, None, None] if name in ("encoder.blocks.output.conv.w", "decoder.blocks.input.w") else x
