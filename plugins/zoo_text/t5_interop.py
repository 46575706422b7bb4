"""The weights of T5's encoder in transformers' layout [1], and back.

A checkpoint of the whole T5 has a decoder and a head too, which are dropped, and names its table of pieces up to three
times.

[1] transformers, models/t5/modeling_t5.py and configuration_t5.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights, suggest
from zoo_text.t5_configs import T5
from zoo_text.t5_model import EPS

State = Mapping[str, Tensor]

TABLES = ("shared.weight", "encoder.embed_tokens.weight")
"""Names of the one table of pieces; a file has either or both."""
DROPPED = ("decoder.", "lm_head.")
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def from_transformers(state: State, config: T5) -> dict[str, Tensor]:
    """Return our state dict for that of a `T5EncoderModel`, or of any T5 with a decoder, which is dropped.

    Raises:
        BadWeights: a key is missing or left over.
    """
    left = {key: x for key, x in state.items() if not key.startswith(DROPPED)}
    tables = [left.pop(name) for name in TABLES if name in left]
    if not tables:
        raise BadWeights(f"T5's weights lack '{TABLES[0]}'{suggest(TABLES[0], state)}")
    ours = {"tokens.weight": tables[0]}
    ours |= {mine: _take(left, public, state) for mine, public in _same(config)}
    for mine, public in _joined(config):
        ours[mine] = torch.cat([_take(left, name, state) for name in public])
    for key in left:
        raise BadWeights(f"T5's weights have an unexpected '{key}'{suggest(key, [b for _, b in _same(config)])}")
    return ours


def to_transformers(state: State, config: T5) -> dict[str, Tensor]:
    """Return the state dict of a `T5EncoderModel` for ours, as its `save_pretrained` writes it.

    Raises:
        BadWeights: a key is missing.
    """
    left = dict(state)
    theirs = {TABLES[0]: _take(left, "tokens.weight", state)}
    theirs |= {public: _take(left, mine, state) for mine, public in _same(config)}
    for mine, public in _joined(config):
        parts = _take(left, mine, state).chunk(len(public))
        theirs |= {name: x.clone() for name, x in zip(public, parts, strict=True)}
    return theirs


def to_folder(state: State, config: T5, size: int | None) -> dict[str, Any]:
    """Return the files of a folder that `T5EncoderModel.from_pretrained` loads.

    Raises:
        BadWeights: see `to_transformers`.
    """
    described = {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "is_encoder_decoder": False,
        "vocab_size": config.rows,
        "d_model": config.width,
        "num_layers": config.depth,
        "d_ff": config.hidden,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "eos_token_id": 1,
        **_said(config),
    }
    return {"config.json": described, "model.safetensors": to_transformers(state, config)}


USUAL = {
    "num_heads": 8, "d_kv": 64, "feed_forward_proj": "relu", "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6,
}  # fmt: skip
"""What [1] takes where a description says nothing."""
FIELDS = {
    "num_heads": "heads", "d_kv": "head_width", "feed_forward_proj": "activation",
    "relative_attention_num_buckets": "buckets", "relative_attention_max_distance": "max_distance",
}  # fmt: skip
"""Their name of a setting -> ours."""


def check_description(described: Mapping[str, Any], config: T5) -> None:
    """Refuse weights that their `config.json` says are of another computation; no shape shows it.

    Raises:
        BadWeights: names the field, theirs and ours.
    """
    for name, ours in _said(config).items():
        theirs = described.get(name, USUAL[name])
        if theirs != ours:
            field = FIELDS.get(name)
            hint = f"; --set {field}={theirs} (in a system text_encoder.{field})" if field else ""
            raise BadWeights(f"says {name} = {theirs}, and this model has {ours}{hint}")


def _said(config: T5) -> dict[str, Any]:
    """Return what decides the computation and is in no shape, in the words of [1]."""
    return {name: getattr(config, field) for name, field in FIELDS.items()} | {"layer_norm_epsilon": EPS}


def _same(config: T5) -> Iterator[tuple[str, str]]:
    """Yield (ours, theirs) of the tensors that differ in their name alone."""
    yield "position.weight", BIAS
    yield "norm.weight", "encoder.final_layer_norm.weight"
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"encoder.block.{i}.layer"
        yield f"{ours}.attention.branch.norm.weight", f"{theirs}.0.layer_norm.weight"
        yield f"{ours}.attention.branch.out.weight", f"{theirs}.0.SelfAttention.o.weight"
        yield f"{ours}.mlp.branch.norm.weight", f"{theirs}.1.layer_norm.weight"
        yield f"{ours}.mlp.branch.down.weight", f"{theirs}.1.DenseReluDense.wo.weight"


def _joined(config: T5) -> Iterator[tuple[str, list[str]]]:
    """Yield (ours, theirs) of the matrices that lie one below the other in ours."""
    ups = ("wi_0", "wi_1") if config.activation == "gated-gelu" else ("wi",)
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"encoder.block.{i}.layer"
        yield f"{ours}.attention.branch.qkv.weight", [f"{theirs}.0.SelfAttention.{x}.weight" for x in "qkv"]
        yield f"{ours}.mlp.branch.up.weight", [f"{theirs}.1.DenseReluDense.{x}.weight" for x in ups]


def _take(left: dict[str, Tensor], key: str, state: State) -> Tensor:
    if key not in left:
        raise BadWeights(f"T5's weights lack '{key}'{suggest(key, state)}")
    return left.pop(key)
