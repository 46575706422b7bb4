"""CLIP's text tower, out of the two public layouts of `zoo_clip.interop`, and back.

What is not of the tower up to its last layer but one is dropped: pictures, the last layer and norm, both projections.

[1] transformers, models/clip/modeling_clip.py and configuration_clip.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights
from zoo_clip.interop import BLOCK, Reader
from zoo_clip.text_configs import ClipText as Config

State = Mapping[str, Tensor]

_TOP = {
    "tokens.weight": ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    "position": ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
}
_LAYERS = ("text_model.encoder.layers", "transformer.resblocks")
_LAST_NORM = ("text_model.final_layer_norm.weight", "ln_final.weight")
_ELSE = (
    ("vision_model.", "text_model.final_layer_norm.", "text_model.embeddings.position_ids", "text_projection.",
     "visual_projection.", "logit_scale"),
    ("visual.", "ln_final.", "text_projection", "logit_scale", "attn_mask", "input_resolution", "context_length",
     "vocab_size"),
)  # fmt: skip
"""How names of what is dropped begin, beside those of the last layer."""


def from_huggingface(state: State, config: Config) -> dict[str, Tensor]:
    """Return our state dict of a `transformers.CLIPTextModel`'s or `CLIPModel`'s.

    Raises:
        BadWeights: a tensor is missing or left over: above all, a tower of another depth.
    """
    if "embeddings.token_embedding.weight" in state:  # a tower by itself, as newer versions of [1] name it
        state = {f"text_model.{name}": x for name, x in state.items()}
    reader = _reader(state, config, 0)
    ours = {mine: reader.take(public) for mine, public in _names(config, 0)}
    for mine, public in _attentions(config, 0):
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = torch.cat([reader.take(f"{public}.self_attn.{x}_proj.{kind}") for x in "qkv"])
    reader.close()
    return ours


def from_openai(state: State, config: Config) -> dict[str, Tensor]:
    """Return our state dict of OpenAI's or open_clip's; raises as `from_huggingface` does."""
    reader = _reader(state, config, 1)
    ours = {mine: reader.take(public) for mine, public in _names(config, 1)}
    for mine, public in _attentions(config, 1):
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = reader.take(f"{public}.attn.in_proj_{kind}")
    reader.close()
    return ours


def to_huggingface(state: State, config: Config) -> dict[str, Tensor]:
    """Return ours by [1]'s names: a tower without its last layer, which `from_huggingface` reads back.

    Raises:
        BadWeights: a tensor is missing.
    """
    reader = Reader(state, ())
    theirs = {public: reader.take(mine) for mine, public in _names(config, 0)}
    for mine, public in _attentions(config, 0):
        for kind in ("weight", "bias"):
            for x, part in zip("qkv", reader.take(f"{mine}.{kind}").chunk(3), strict=True):
                theirs[f"{public}.self_attn.{x}_proj.{kind}"] = part.clone()
    return theirs


def to_openai(state: State, config: Config) -> dict[str, Tensor]:
    """Return ours by OpenAI's names; see `to_huggingface`."""
    reader = Reader(state, ())
    theirs = {public: reader.take(mine) for mine, public in _names(config, 1)}
    for mine, public in _attentions(config, 1):
        for kind in ("weight", "bias"):
            theirs[f"{public}.attn.in_proj_{kind}"] = reader.take(f"{mine}.{kind}")
    return theirs


USUAL = {"hidden_act": "quick_gelu", "num_attention_heads": 8, "layer_norm_eps": 1e-5}
"""What [1] takes where a description says nothing."""


def check_description(described: Mapping[str, Any], config: Config) -> None:
    """Refuse weights that their `config.json` says are of another computation; no shape shows it.

    Raises:
        BadWeights: names the field, theirs and ours.
    """
    said = described.get("text_config") or described
    ours = {"hidden_act": config.activation, "num_attention_heads": config.heads, "layer_norm_eps": 1e-5}
    fields = {"hidden_act": "activation", "num_attention_heads": "heads"}
    for name, usual in USUAL.items():
        theirs = said.get(name, usual)
        if theirs != ours[name]:
            field = fields.get(name)
            hint = f"; --set {field}={theirs} (in a system text_encoder.{field})" if field else ""
            raise BadWeights(f"says {name} = {theirs}, and this model has {ours[name]}{hint}")


def _reader(state: State, config: Config, layout: int) -> Reader:
    """Return what takes the tower's tensors, having dropped the others.

    A file with the last norm has the whole tower: then the last layer must be there, or another layer would stand in
    for the last but one.
    """
    last = f"{_LAYERS[layout]}.{config.layers - 1}."
    if _LAST_NORM[layout] in state and not any(key.startswith(last) for key in state):
        raise BadWeights(f"no tensor '{last}...': the file's text tower has fewer layers than {config.layers}")
    return Reader({key: x for key, x in state.items() if not key.startswith((*_ELSE[layout], last))}, ())


def _names(config: Config, layout: int) -> Iterator[tuple[str, str]]:
    """Yield (our name, public name) of everything but queries, keys and values."""
    for ours, names in _TOP.items():
        yield ours, names[layout]
    for i in range(config.layers - 1):
        for ours, names in BLOCK.items():
            for kind in ("weight", "bias"):
                mine = f"blocks.{ours.format(even=2 * i, odd=2 * i + 1)}.{kind}"
                yield mine, f"{_LAYERS[layout]}.{i}.{names[layout]}.{kind}"


def _attentions(config: Config, layout: int) -> Iterator[tuple[str, str]]:
    """Yield (our, public) prefix of every attention."""
    for i in range(config.layers - 1):
        yield f"blocks.{2 * i}.branch.qkv", f"{_LAYERS[layout]}.{i}"
