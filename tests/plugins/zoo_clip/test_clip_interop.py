"""CLIP against transformers' CLIPModel, and the conversions between the public layouts and ours."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from zoo.errors import BadWeights
from zoo_clip.configs import Clip as Config
from zoo_clip.configs import clip_vit_b32
from zoo_clip.interop import caption_mask, from_huggingface, from_openai, to_huggingface, to_openai
from zoo_clip.model import Clip

transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)
VOCAB, LENGTH = 60, 12


def config(activation: str = "quick_gelu") -> Config:
    """Return a config whose sizes all differ."""
    return Config(
        patch=4, image_size=16, vision_width=32, vision_layers=3, vision_heads=4, text_width=24, text_layers=2,
        text_heads=2, text_vocab=VOCAB, text_length=LENGTH, embed_dim=20, activation=activation,
    )  # fmt: skip


def peer(c: Config, eos: int = 59) -> torch.nn.Module:
    """Return transformers' model of that config, every parameter random."""
    torch.manual_seed(0)
    shared = {"hidden_act": c.activation}
    text = {
        "hidden_size": c.text_width, "intermediate_size": 4 * c.text_width, "num_hidden_layers": c.text_layers,
        "num_attention_heads": c.text_heads, "vocab_size": c.text_vocab, "max_position_embeddings": c.text_length,
        "eos_token_id": eos, "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": c.vision_width, "intermediate_size": 4 * c.vision_width, "num_hidden_layers": c.vision_layers,
        "num_attention_heads": c.vision_heads, "image_size": c.image_size, "patch_size": c.patch,
    }  # fmt: skip
    sizes = transformers.CLIPConfig(
        text_config=text | shared, vision_config=vision | shared, projection_dim=c.embed_dim
    )
    model = transformers.CLIPModel(sizes).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model


def ours(c: Config, state: dict[str, torch.Tensor]) -> Clip:
    """Return our model with these weights."""
    model = Clip(c, SimpleNamespace(vocab_size=c.text_vocab, length=c.text_length))
    model.load_state_dict(state)
    return model


def captions(end: int) -> torch.Tensor:
    """Return ids whose end token sits at different places, followed by padding or by more end tokens."""
    torch.manual_seed(1)
    ids = torch.randint(3, 50, (4, LENGTH))
    for row, at in enumerate((3, LENGTH - 1, 6, 1)):
        ids[row, at] = end
        ids[row, at + 1 :] = end if row % 2 else 0
    return ids


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    """Assert equality relative to the largest value."""
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("eos", [59, 2])
def test_parity(activation, dtype, tolerance, eos):
    """Hidden states of each tower, features, logits, and the gradient of every parameter.

    With eos 2 transformers reads text at the largest id, whatever the end token is.
    """
    c = config(activation)
    theirs = peer(c, eos).to(dtype)
    model = ours(c, from_huggingface(theirs.state_dict(), c)).to(dtype)
    ids = captions(59)
    mask = caption_mask(ids, None if eos == 2 else eos)
    images = torch.rand(3, 3, 16, 16, dtype=dtype)
    pixels = (images - images.new_tensor(c.mean).view(3, 1, 1)) / images.new_tensor(c.std).view(3, 1, 1)
    out = theirs(input_ids=ids, pixel_values=pixels)

    close(model.vision.hidden(pixels), out.vision_model_output.last_hidden_state, tolerance)
    close(model.text.hidden(ids), out.text_model_output.last_hidden_state, tolerance)
    image, text = model.image_features(images), model.text_features(ids, mask)
    close(image, out.image_embeds, tolerance)
    close(text, out.text_embeds, tolerance)
    logits = model.logit_scale.exp() * image @ text.T
    close(logits, out.logits_per_image, tolerance)

    weights = torch.randn_like(logits)
    (out.logits_per_image * weights).sum().backward()
    (logits * weights).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    largest = max(g.abs().max() for g in grads.values())
    for name, grad in from_huggingface(grads, c).items():
        mine = model.get_parameter(name).grad
        assert (mine - grad).abs().max() <= 10 * tolerance * grad.abs().max() + 1e-2 * tolerance * largest, name


def test_a_wrong_pooling_would_show():
    c = config()
    theirs = peer(c)
    model = ours(c, from_huggingface(theirs.state_dict(), c))
    ids = captions(59)
    wrong = torch.ones_like(ids, dtype=torch.bool)
    text = theirs(input_ids=ids, pixel_values=torch.zeros(1, 3, 16, 16)).text_embeds
    assert (model.text_features(ids, wrong) - text).abs().max() > 0.01


def test_caption_mask():
    ids = torch.tensor([[5, 7, 9, 0, 0], [5, 9, 9, 9, 9], [9, 1, 2, 3, 4]])
    expected = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]).bool()
    assert torch.equal(caption_mask(ids, 9), expected)
    assert torch.equal(caption_mask(ids, None), expected)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_round_trips():
    c = config()
    state = peer(c).state_dict()
    mine = from_huggingface(state, c)
    assert same(to_huggingface(mine, c), state)
    openai = to_openai(mine, c)
    assert same(from_openai(openai, c), mine)
    assert same(to_huggingface(from_openai(openai, c), c), state)


def openai_shapes(c: Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of OpenAI's published ViT archives."""
    v, t, e = c.vision_width, c.text_width, c.embed_dim
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (c.text_length, t),
        "text_projection": (t, e),
        "logit_scale": (),
        "token_embedding.weight": (c.text_vocab, t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
        "visual.class_embedding": (v,),
        "visual.positional_embedding": ((c.image_size // c.patch) ** 2 + 1, v),
        "visual.proj": (v, e),
        "visual.conv1.weight": (v, 3, c.patch, c.patch),
    }
    for norm in ("visual.ln_pre", "visual.ln_post"):
        shapes |= {f"{norm}.weight": (v,), f"{norm}.bias": (v,)}
    for prefix, d, depth in (("transformer", t, c.text_layers), ("visual.transformer", v, c.vision_layers)):
        for i in range(depth):
            layer = {
                "attn.in_proj_weight": (3 * d, d), "attn.in_proj_bias": (3 * d,),
                "attn.out_proj.weight": (d, d), "attn.out_proj.bias": (d,),
                "ln_1.weight": (d,), "ln_1.bias": (d,), "ln_2.weight": (d,), "ln_2.bias": (d,),
                "mlp.c_fc.weight": (4 * d, d), "mlp.c_fc.bias": (4 * d,),
                "mlp.c_proj.weight": (d, 4 * d), "mlp.c_proj.bias": (d,),
            }  # fmt: skip
            shapes |= {f"{prefix}.resblocks.{i}.{k}": s for k, s in layer.items()}
    return shapes


def test_openai_names_and_shapes():
    c = config()
    openai = to_openai(from_huggingface(peer(c).state_dict(), c), c)
    assert {name: tuple(x.shape) for name, x in openai.items()} == openai_shapes(c)


def test_openai_projections_act_from_the_right():
    """In OpenAI's code a feature row is multiplied by the projection: x @ proj."""
    c = config()
    model = ours(c, from_huggingface(peer(c).state_dict(), c))
    openai = to_openai(model.state_dict(), c)
    pixels = torch.rand(2, 3, 16, 16)
    row = F.layer_norm(
        model.vision.hidden(pixels)[:, 0], (32,), openai["visual.ln_post.weight"], openai["visual.ln_post.bias"]
    )
    close(row @ openai["visual.proj"], model.vision(pixels), 1e-5)


def test_published_size_in_both_layouts():
    """ViT-B/32: 398 tensors in transformers' layout, 302 in OpenAI's."""
    c = clip_vit_b32()
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig())
        state = theirs.state_dict()
    assert len(state) == 398
    assert sum(x.numel() for x in state.values()) == 151_277_313
    mine = from_huggingface(state, c)
    openai = to_openai(mine, c)
    assert {name: tuple(x.shape) for name, x in openai.items()} == openai_shapes(c)
    assert sum(x.numel() for x in openai.values()) == 151_277_313
    assert len(openai) == 302


def test_counters_and_sizes_are_dropped():
    c = config()
    state = peer(c).state_dict()
    mine = from_huggingface(state, c)
    extra = state | {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    assert same(from_huggingface(extra, c), mine)
    archive = to_openai(mine, c) | {"input_resolution": torch.tensor(16), "context_length": torch.tensor(LENGTH)}
    assert same(from_openai(archive, c), mine)


@pytest.mark.parametrize("layout", ["huggingface", "openai"])
def test_foreign_weights_are_refused(layout):
    c = config()
    read, write = {"huggingface": (from_huggingface, to_huggingface), "openai": (from_openai, to_openai)}[layout]
    mine = from_huggingface(peer(c).state_dict(), c)
    state = write(mine, c)
    with pytest.raises(BadWeights, match="no tensor"):
        read({k: x for k, x in state.items() if k != "logit_scale"}, c)
    with pytest.raises(BadWeights, match=r"1 tensors have no place in this CLIP \(head\)"):
        read(state | {"head": torch.zeros(1)}, c)
    bad = next(name for name in state if "class_embedding" in name)
    with pytest.raises(BadWeights, match=r"vision\.first is \(3,\) in the file and \(32,\)"):
        read(state | {bad: torch.zeros(3)}, c)
    with pytest.raises(BadWeights):
        write({k: x for k, x in mine.items() if "qkv" not in k}, c)
    with pytest.raises(BadWeights):
        write(mine | {"more": torch.zeros(1)}, c)
