"""CLIP's two public layouts and ours, as pure functions on state dicts.

`huggingface`: transformers' CLIPModel. `openai`: github.com/openai/CLIP and open_clip.

All hold the same numbers. Hugging Face splits queries, keys and values; OpenAI keeps them in one matrix, as we do,
and stores both last projections transposed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

from zoo.errors import BadWeights
from zoo_clip.configs import Clip as Config

State = dict[str, Tensor]

HUGGINGFACE_EXTRA = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Counters that old files hold; no weights."""
OPENAI_EXTRA = ("input_resolution", "context_length", "vocab_size", "attn_mask")
"""Sizes that the TorchScript archives hold; no weights."""

_TOP = {
    "logit_scale": ("logit_scale", "logit_scale"),
    "text.tokens.weight": ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    "text.position": ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    "text.norm_out": ("text_model.final_layer_norm", "ln_final"),
    "text.project.weight": ("text_projection.weight", "text_projection"),
    "vision.first": ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    "vision.patches.weight": ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    "vision.position": ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    "vision.norm_in": ("vision_model.pre_layrnorm", "visual.ln_pre"),  # spelled so
    "vision.norm_out": ("vision_model.post_layernorm", "visual.ln_post"),
    "vision.project.weight": ("visual_projection.weight", "visual.proj"),
}
BLOCK = {
    "{even}.branch.norm": ("layer_norm1", "ln_1"),
    "{even}.branch.out": ("self_attn.out_proj", "attn.out_proj"),
    "{odd}.branch.norm": ("layer_norm2", "ln_2"),
    "{odd}.branch.wide": ("mlp.fc1", "mlp.c_fc"),
    "{odd}.branch.out": ("mlp.fc2", "mlp.c_proj"),
}
"""Our place in a tower's list of residual sums -> what it is called in a public layer."""
_TOWERS = {
    "text": ("text_model.encoder.layers", "transformer.resblocks"),
    "vision": ("vision_model.encoder.layers", "visual.transformer.resblocks"),
}
_TRANSPOSED = ("text_projection", "visual.proj")


def _depth(config: Config, tower: str) -> int:
    return config.text_layers if tower == "text" else config.vision_layers


def _names(config: Config, layout: int) -> Iterator[tuple[str, str]]:
    """Yield (our name, public name) of everything but queries, keys and values."""
    pairs = {ours: names[layout] for ours, names in _TOP.items()}
    for tower, prefixes in _TOWERS.items():
        for i in range(_depth(config, tower)):
            for ours, names in BLOCK.items():
                mine = f"{tower}.blocks.{ours.format(even=2 * i, odd=2 * i + 1)}"
                pairs[mine] = f"{prefixes[layout]}.{i}.{names[layout]}"
    for ours, public in pairs.items():
        if "norm" in ours or "branch" in ours:
            yield f"{ours}.weight", f"{public}.weight"
            yield f"{ours}.bias", f"{public}.bias"
        else:
            yield ours, public


def _attentions(config: Config, layout: int) -> Iterator[tuple[str, str]]:
    """Yield (our, public) prefix of every attention."""
    for tower, prefixes in _TOWERS.items():
        for i in range(_depth(config, tower)):
            yield f"{tower}.blocks.{2 * i}.branch.qkv", f"{prefixes[layout]}.{i}"


def _shapes(config: Config) -> dict[str, torch.Size]:
    """Return the shape of every tensor of ours, without allocating any."""
    from zoo_clip.model import Clip

    sizes = SimpleNamespace(vocab_size=config.text_vocab, length=config.text_length)
    with torch.device("meta"):
        return {name: x.shape for name, x in Clip(config, sizes).state_dict().items()}


class Reader:
    """Takes tensors out of a state dict by name, and knows what was not taken."""

    def __init__(self, state: Mapping[str, Tensor], extra: tuple[str, ...]) -> None:
        self.left = {name: x for name, x in state.items() if name not in extra}

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise BadWeights(f"no tensor '{name}': not CLIP weights in this layout, or of another size")
        return self.left.pop(name)

    def close(self) -> None:
        if self.left:
            some = ", ".join(sorted(self.left)[:3])
            raise BadWeights(f"{len(self.left)} tensors have no place in this CLIP ({some})")


def _checked(state: State, config: Config) -> State:
    for name, shape in _shapes(config).items():
        if state[name].shape != shape:
            raise BadWeights(f"{name} is {tuple(state[name].shape)} in the file and {tuple(shape)} in the config")
    return state


def from_huggingface(state: Mapping[str, Tensor], config: Config) -> State:
    """Return our state dict of a `transformers.CLIPModel`'s.

    Raises:
        BadWeights: a tensor is missing, left over, or of another shape.
    """
    reader = Reader(state, HUGGINGFACE_EXTRA)
    ours = {mine: reader.take(public) for mine, public in _names(config, 0)}
    for mine, public in _attentions(config, 0):
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = torch.cat([reader.take(f"{public}.self_attn.{x}_proj.{kind}") for x in "qkv"])
    reader.close()
    return _checked(ours, config)


def to_huggingface(state: Mapping[str, Tensor], config: Config) -> State:
    """Return a `transformers.CLIPModel`'s state dict of ours; raises BadWeights as `from_huggingface` does."""
    reader = Reader(state, ())
    theirs = {public: reader.take(mine) for mine, public in _names(config, 0)}
    for mine, public in _attentions(config, 0):
        for kind in ("weight", "bias"):
            for x, part in zip("qkv", reader.take(f"{mine}.{kind}").chunk(3), strict=True):
                theirs[f"{public}.self_attn.{x}_proj.{kind}"] = part.clone()
    reader.close()
    return theirs


def from_openai(state: Mapping[str, Tensor], config: Config) -> State:
    """Return our state dict of OpenAI's or open_clip's (the ViT models); raises as `from_huggingface` does."""
    reader = Reader(state, OPENAI_EXTRA)
    ours: State = {}
    for mine, public in _names(config, 1):
        x = reader.take(public)
        ours[mine] = x.T.contiguous() if public in _TRANSPOSED else x
    for mine, public in _attentions(config, 1):
        for kind in ("weight", "bias"):
            ours[f"{mine}.{kind}"] = reader.take(f"{public}.attn.in_proj_{kind}")
    reader.close()
    return _checked(ours, config)


def to_openai(state: Mapping[str, Tensor], config: Config) -> State:
    """Return OpenAI's state dict of ours; raises BadWeights as `from_huggingface` does."""
    reader = Reader(state, ())
    theirs: State = {}
    for mine, public in _names(config, 1):
        x = reader.take(mine)
        theirs[public] = x.T.contiguous() if public in _TRANSPOSED else x
    for mine, public in _attentions(config, 1):
        for kind in ("weight", "bias"):
            theirs[f"{public}.attn.in_proj_{kind}"] = reader.take(f"{mine}.{kind}")
    reader.close()
    return theirs


def caption_mask(ids: Tensor, end: int | None) -> Tensor:
    """Return the mask [B,T] of public CLIP ids [B,T]: True up to and including the end token.

    Args:
        ids: as the public tokenizers give them, padded after the end token.
        end: id of the end token, whose first occurrence counts. None: the largest id is it, as in OpenAI's code
            (and in transformers' configs that still say `eos_token_id = 2`).
    """
    at = ids.argmax(1) if end is None else (ids == end).int().argmax(1)
    return torch.arange(ids.shape[1], device=ids.device) <= at[:, None]
