"""The transformer's weights in the layouts of its open relatives, and back.

Letters: V caption pieces, T caption positions, K image codes, D width.

[1] github.com/kakaobrain/minDALL-E, dalle/models/stage2/transformer.py, Transformer1d
[2] github.com/ai-forever/ru-dalle, rudalle/dalle/model.py, DalleModel; hf_version "v3"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from zoo.errors import BadWeights, ConfigError
from zoo.keys import nothing_left, take
from zoo_dalle.configs import DallePrior

State = Mapping[str, Tensor]

_take = partial(take, "DALL-E weights")
_nothing_left = partial(nothing_left, "DALL-E weights")

MINDALLE = {"pattern": "full", "block": "pre", "gelu": "exact", "positions": "each", "final_norms": 1,
            "head_bias": False, "first_token": "given", "mlp_ratio": 4, "reads": "ids"}  # fmt: skip
RUDALLE = {"pattern": "sparse-cut", "block": "sandwich", "gelu": "tanh", "positions": "row-column", "final_norms": 2,
           "head_bias": True, "first_token": "given", "mlp_ratio": 4, "reads": "ids"}  # fmt: skip
"""What the public code computes; with other values equal weights would be another function."""

PAD = 0
"""Id of minDALL-E's padding piece, the first of its vocabulary [1]."""


def from_mindalle(state: State, config: DallePrior) -> dict[str, Tensor]:
    """Return our state dict for minDALL-E's. Its padding piece becomes the pad of every caption position.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    _same_function(config, MINDALLE)
    left = dict(state)
    ours = {a: _take(left, b, state) for a, b in _names(_mindalle(config))}
    for i in range(config.depth):
        theirs = [f"blocks.{i}.attn.{part}" for part in ("query", "key", "value")]
        for leaf in ("weight", "bias"):
            ours[f"blocks.{i}.attention.branch.qkv.{leaf}"] = torch.cat(
                [_take(left, f"{x}.{leaf}", state) for x in theirs]
            )
    assert config.text_length is not None
    ours["prefix.pad.weight"] = ours["prefix.token.weight"][PAD].expand(config.text_length, -1).clone()
    _nothing_left(left, ours)
    return ours


def to_mindalle(state: State, config: DallePrior) -> dict[str, Tensor]:
    """Return minDALL-E's state dict for ours.

    Raises:
        BadWeights: a key is missing or left over; or pads that have learnt to differ, which it has no place for.
        ConfigError: the config has what their code has not.
    """
    _same_function(config, MINDALLE)
    left = dict(state)
    theirs = {b: _take(left, a, state) for a, b in _names(_mindalle(config))}
    for i in range(config.depth):
        for leaf in ("weight", "bias"):
            parts = _take(left, f"blocks.{i}.attention.branch.qkv.{leaf}", state).chunk(3)
            for part, x in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"blocks.{i}.attn.{part}.{leaf}"] = x
    pads = _take(left, "prefix.pad.weight", state)
    if not pads.is_meta and not torch.equal(pads, theirs["tok_emb_txt.weight"][PAD].expand_as(pads)):
        raise BadWeights(
            "minDALL-E has one padding piece for all caption positions, and these weights differ in theirs"
        )
    _nothing_left(left, theirs)
    return theirs


def from_rudalle(state: State, config: DallePrior) -> dict[str, Tensor]:
    """Return our state dict for ruDALL-E's.

    Its masks are dropped, and so is what has no effect on a picture: the position after the caption's last, which its
    older version used, and the caption head's classes of pads, which are never predicted here.

    Raises:
        BadWeights: a key is missing or left over, or a table has another size.
        ConfigError: the config has what their code has not.
    """
    _same_function(config, RUDALLE)
    vocab, length, codes = _sizes(config)
    left = {key: x for key, x in state.items() if not key.endswith(("row_mask", "col_mask", "conv_mask"))}
    ours = {a: _take(left, b, state) for a, b in _names(_rudalle(config))}
    table = _take(left, "text_embeddings.weight", state)
    _rows("text_embeddings.weight", table, vocab + length)
    ours["prefix.token.weight"], ours["prefix.pad.weight"] = table[:vocab], table[vocab:]
    position = _take(left, "text_pos_embeddings.weight", state)
    _rows("text_pos_embeddings.weight", position, length + 1)
    ours["prefix.position.weight"] = position[:length]
    for leaf in ("weight", "bias"):
        head = _take(left, f"to_logits.1.{leaf}", state)
        _rows(f"to_logits.1.{leaf}", head, vocab + length + codes)
        ours[f"caption_head.logits.{leaf}"], ours[f"head.{leaf}"] = head[:vocab], head[vocab + length :]
    _nothing_left(left, ours)
    return ours


def to_rudalle(state: State, config: DallePrior) -> dict[str, Tensor]:
    """Return ruDALL-E's state dict for ours, without its masks, which its code makes; what is not here is zero.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    _same_function(config, RUDALLE)
    left = dict(state)
    theirs = {b: _take(left, a, state) for a, b in _names(_rudalle(config))}
    table = [_take(left, f"prefix.{name}.weight", state) for name in ("token", "pad")]
    theirs["text_embeddings.weight"] = torch.cat(table)
    position = _take(left, "prefix.position.weight", state)
    theirs["text_pos_embeddings.weight"] = torch.cat((position, torch.zeros_like(position[:1])))
    for leaf in ("weight", "bias"):
        caption, head = _take(left, f"caption_head.logits.{leaf}", state), _take(left, f"head.{leaf}", state)
        theirs[f"to_logits.1.{leaf}"] = torch.cat((caption, torch.zeros_like(caption[: len(position)]), head))
    _nothing_left(left, theirs)
    return theirs


def _same_function(config: DallePrior, theirs: Mapping[str, object]) -> None:
    for name, value in theirs.items():
        if getattr(config, name) != value:
            raise ConfigError(f"{name}: is {getattr(config, name)!r}; in this layout it is {value!r}")


def _sizes(config: DallePrior) -> tuple[int, int, int]:
    assert config.text_vocab is not None
    assert config.text_length is not None
    assert config.vocab_size is not None
    return config.text_vocab, config.text_length, config.vocab_size


def _names(layers: Iterator[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Return (our key, their key) for (our module, theirs, leaves)."""
    return [(f"{a}.{leaf}", f"{b}.{leaf}") for a, b, leaves in layers for leaf in leaves.split()]


def _mindalle(config: DallePrior) -> Iterator[tuple[str, str, str]]:
    """Yield what has one name there and one here."""
    yield "prefix.token", "tok_emb_txt", "weight"
    yield "prefix.position", "pos_emb_txt", "weight"
    yield "codes.token", "tok_emb_img", "weight"
    yield "codes.position", "pos_emb_img", "weight"
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"blocks.{i}"
        yield f"{ours}.attention.branch.norm", f"{theirs}.ln1", "weight bias"
        yield f"{ours}.attention.branch.out", f"{theirs}.attn.proj", "weight bias"
        yield f"{ours}.mlp.branch.norm", f"{theirs}.ln2", "weight bias"
        yield f"{ours}.mlp.branch.up", f"{theirs}.mlp.0", "weight bias"
        yield f"{ours}.mlp.branch.down", f"{theirs}.mlp.2", "weight bias"
    yield "norm", "ln_f", "weight bias"
    yield "head", "head_img", "weight"
    yield "caption_head.logits", "head_txt", "weight"


def _rudalle(config: DallePrior) -> Iterator[tuple[str, str, str]]:
    """Yield what has one name there and one here."""
    yield "codes.token", "image_embeddings", "weight"
    yield "codes.row", "image_row_embeddings", "weight"
    yield "codes.column", "image_col_embeddings", "weight"
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"transformer.layers.{i}"
        yield f"{ours}.attention.branch.inner.norm", f"{theirs}.input_layernorm", "weight bias"
        yield f"{ours}.attention.branch.inner.qkv", f"{theirs}.attention.query_key_value", "weight bias"
        yield f"{ours}.attention.branch.inner.out", f"{theirs}.attention.dense", "weight bias"
        yield f"{ours}.attention.branch.norm", f"{theirs}.before_first_addition_layernorm", "weight bias"
        yield f"{ours}.mlp.branch.inner.norm", f"{theirs}.post_attention_layernorm", "weight bias"
        yield f"{ours}.mlp.branch.inner.up", f"{theirs}.mlp.dense_h_to_4h", "weight bias"
        yield f"{ours}.mlp.branch.inner.down", f"{theirs}.mlp.dense_4h_to_h", "weight bias"
        yield f"{ours}.mlp.branch.norm", f"{theirs}.before_second_addition_layernorm", "weight bias"
    yield "norm.0", "transformer.final_layernorm", "weight bias"
    yield "norm.1", "to_logits.0", "weight bias"


def _rows(key: str, x: Tensor, rows: int) -> None:
    if len(x) != rows:
        raise BadWeights(f"'{key}' has {len(x)} rows, and this variant's has {rows}")
