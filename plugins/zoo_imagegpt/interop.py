"""ImageGPT's weights in transformers' layout and in that of the authors' checkpoints, and back.

Letters: D width, H heads, E head width.

[1] transformers, models/imagegpt/modeling_imagegpt.py
[2] github.com/openai/image-gpt, src/model.py: names and shapes of the TensorFlow variables
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights, ConfigError
from zoo.keys import nothing_left, take
from zoo_imagegpt.configs import ImageGptPrior

State = Mapping[str, Tensor]

_take = partial(take, "ImageGPT's weights")
_nothing_left = partial(nothing_left, "ImageGPT's weights")

TRANSFORMERS = (
    {
        "position.weight": "transformer.wpe.weight",
        "norm.weight": "transformer.ln_f.weight",
        "head.weight": "lm_head.weight",
    },
    "transformer.h.{i}.ln_{place}.weight",
)
"""What is the same in both but for its name in [1]: outside of the blocks, and a block's gains."""
OPENAI = (
    {"position.weight": "model/wpe", "norm.weight": "model/ln_f/g", "head.weight": "model/wtet"},
    "model/h{i}/ln_{place}/g",
)
"""The same in [2]."""
MASKS = (".attn.bias", ".attn.masked_bias")
"""What old files of [1] hold beside the weights: the causal mask, as bytes, and what stands for minus infinity."""
SLOTS = ("adam", "global_step", "_power", "/ema")
"""What the variables of an optimiser, or of averaging, have in their names [2]."""
CLASSIFIER = "wclf"
"""The head of fine-tuning on classes [2], which is no part of a prior."""


ALWAYS = {"activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5}
"""What every prior here does, in the words of [1]."""
USUAL = {
    "activation_function": "quick_gelu", "layer_norm_epsilon": 1e-5, "n_head": 8, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}  # fmt: skip
"""What [1] takes where a description says nothing."""


def check_description(described: Mapping[str, Any], config: ImageGptPrior) -> None:
    """Refuse weights that their `config.json` says are of another computation; no shape shows it.

    Raises:
        BadWeights: names the field, theirs and ours.
    """
    ours = {**USUAL, **ALWAYS, "n_head": config.heads}
    for name, usual in USUAL.items():
        theirs = described.get(name, usual)
        if theirs != ours[name]:
            hint = f"; --set prior.heads={theirs} (a prior's own card: heads={theirs})" if name == "n_head" else ""
            raise BadWeights(f"says {name} = {theirs}, and this model has {ours[name]}{hint}")


def to_folder(state: State, config: ImageGptPrior, size: int | None) -> dict[str, Any]:
    """Return the files of a folder that `ImageGPTForCausalImageModeling.from_pretrained` loads.

    Raises:
        BadWeights, ConfigError: see `to_transformers`.
    """
    weights = to_transformers(state, config)
    assert config.vocab_size is not None
    described = {
        "model_type": "imagegpt",
        "architectures": ["ImageGPTForCausalImageModeling"],
        "vocab_size": config.vocab_size + 1,
        "n_positions": config.length,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp_ratio * config.width,
        **ALWAYS,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": False,
    }
    return {"config.json": described, "model.safetensors": weights}


def from_transformers(state: State, config: ImageGptPrior) -> dict[str, Tensor]:
    """Return our state dict for that of [1]: matrices transposed, biases that must be zero and masks dropped.

    Raises:
        BadWeights: a key is missing or left over, or a bias is not zero: the published weights have none.
        ConfigError: the prior has one start vector a class.
    """
    _one_start(config)
    left = {key: x for key, x in state.items() if not key.endswith(MASKS)}
    table = _take(left, "transformer.wte.weight", state)
    _rows("transformer.wte.weight", table, (config.vocab_size or 0) + 1)
    ours = {"token.weight": table[:-1]}
    if config.objective == "ar":
        ours["start.weight"] = table[-1:]
    ours |= {a: _take(left, b, state) for a, b in _same(*TRANSFORMERS, config.depth)}
    for i in range(config.depth):
        for branch, module in _products():
            name = f"transformer.h.{i}.{module}"
            ours[f"blocks.{i}.{branch}.weight"] = _take(left, f"{name}.weight", state).t()
            _zero(f"{name}.bias", left.pop(f"{name}.bias", None))
    _nothing_left(left, ours)
    return ours


def to_transformers(state: State, config: ImageGptPrior) -> dict[str, Tensor]:
    """Return the state dict of [1] for ours; its biases are zero.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the prior is not causal, which [1] always is, or has one start vector a class.
    """
    _one_start(config)
    if config.objective != "ar":
        raise ConfigError("objective: transformers' ImageGPT is causal, and this prior was trained on masked codes")
    left = dict(state)
    table = torch.cat([_take(left, f"{name}.weight", state) for name in ("token", "start")])
    theirs = {"transformer.wte.weight": table}
    theirs |= {b: _take(left, a, state) for a, b in _same(*TRANSFORMERS, config.depth)}
    for i in range(config.depth):
        for branch, module in _products():
            weight = _take(left, f"blocks.{i}.{branch}.weight", state)
            theirs[f"transformer.h.{i}.{module}.weight"] = weight.t()
            theirs[f"transformer.h.{i}.{module}.bias"] = weight.new_zeros(len(weight))
    _nothing_left(left, theirs)
    return theirs


def from_openai(state: State, config: ImageGptPrior) -> dict[str, Tensor]:
    """Return our state dict for the authors' variables [2]; the optimiser's and the classifier's are dropped.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the prior has one start vector a class.
    """
    _one_start(config)
    left = {key: x for key, x in state.items() if not _is_slot(key)}
    ours = {a: _take(left, b, state) for a, b in _same(*OPENAI, config.depth)}
    ours["token.weight"] = _take(left, "model/wte", state)
    if config.objective == "ar":
        ours["start.weight"] = _take(left, "model/sos", state)[None]
    else:
        left.pop("model/sos", None)
    d = config.width
    for i in range(config.depth):
        # [H,E,D] each: rows of one head, then the next, are rows of the matrix.
        heads = [_take(left, f"model/h{i}/attn/{x}_proj", state).reshape(d, -1) for x in "qkv"]
        ours[f"blocks.{i}.attention.branch.qkv.weight"] = torch.cat(heads)
        out = _take(left, f"model/h{i}/attn/c_proj", state).reshape(-1, d)
        ours[f"blocks.{i}.attention.branch.out.weight"] = out.t()
        for ours_name, theirs in (("up", "c_fc"), ("down", "c_proj")):
            weight = _take(left, f"model/h{i}/mlp/{theirs}/w", state)
            ours[f"blocks.{i}.mlp.branch.{ours_name}.weight"] = weight.t()
    _nothing_left(left, ours)
    return ours


def to_openai(state: State, config: ImageGptPrior) -> dict[str, Tensor]:
    """Return the authors' variables [2] for our state dict.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the prior has one start vector a class.
    """
    _one_start(config)
    left = dict(state)
    theirs = {b: _take(left, a, state) for a, b in _same(*OPENAI, config.depth)}
    theirs["model/wte"] = _take(left, "token.weight", state)
    if config.objective == "ar":
        theirs["model/sos"] = _take(left, "start.weight", state)[0]
    d, e = config.width, config.width // config.heads
    for i in range(config.depth):
        heads = _take(left, f"blocks.{i}.attention.branch.qkv.weight", state).chunk(3)
        for x, weight in zip("qkv", heads, strict=True):
            theirs[f"model/h{i}/attn/{x}_proj"] = weight.reshape(config.heads, e, d)
        out = _take(left, f"blocks.{i}.attention.branch.out.weight", state)
        theirs[f"model/h{i}/attn/c_proj"] = out.t().reshape(config.heads, e, d)
        for ours_name, name in (("up", "c_fc"), ("down", "c_proj")):
            theirs[f"model/h{i}/mlp/{name}/w"] = _take(left, f"blocks.{i}.mlp.branch.{ours_name}.weight", state).t()
    _nothing_left(left, theirs)
    return theirs


def _same(names: Mapping[str, str], norm: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield (ours, theirs) of the tensors that are the same in both; `norm` is their name of a block's gain."""
    yield from names.items()
    for i in range(depth):
        for branch, place in (("attention", 1), ("mlp", 2)):
            yield f"blocks.{i}.{branch}.branch.norm.weight", norm.format(i=i, place=place)


def _products() -> Iterator[tuple[str, str]]:
    """Yield (ours, theirs) of a block's matrices in [1]."""
    yield "attention.branch.qkv", "attn.c_attn"
    yield "attention.branch.out", "attn.c_proj"
    yield "mlp.branch.up", "mlp.c_fc"
    yield "mlp.branch.down", "mlp.c_proj"


def _is_slot(key: str) -> bool:
    name = key.lower()
    return any(word in name for word in SLOTS) or CLASSIFIER in name.split("/")


def _one_start(config: ImageGptPrior) -> None:
    if config.reads == "label":
        raise ConfigError("reads: public ImageGPT has one start vector, and this prior one for each class")


def _zero(key: str, bias: Tensor | None) -> None:
    """Refuse a bias that does something; without values, on the meta device, it passes."""
    if bias is not None and not bias.is_meta and bool(bias.any()):
        raise BadWeights(f"'{key}' is not zero; ImageGPT has no biases, so these weights are of another model")


def _rows(key: str, x: Tensor, rows: int) -> None:
    if len(x) != rows:
        raise BadWeights(f"'{key}' has {len(x)} rows; the model's {rows - 1} codes and a start vector make {rows}")
