"""CLIP's text tower as a text encoder, against transformers' CLIPTextModel; public files of the tower and of CLIP."""

import json

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.errors import BadWeights, PartMismatch
from zoo.testing.kit import Pictures, one_thread
from zoo.weights import save_tensors
from zoo_clip.configs import Clip as WholeConfig
from zoo_clip.interop import from_huggingface as whole_from_huggingface
from zoo_clip.interop import to_openai as whole_to_openai
from zoo_clip.text import ClipText
from zoo_clip.text_configs import ClipText as Config
from zoo_clip.text_interop import check_description, from_huggingface, from_openai, to_huggingface, to_openai

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
VOCAB, LENGTH, END = 60, 12, 59
SIZES = {"width": 24, "layers": 3, "heads": 2, "text_vocab": VOCAB, "text_length": LENGTH}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def config(activation="quick_gelu", **more):
    return Config(activation=activation, **SIZES | more)


def text_sizes(activation="quick_gelu", layers=3):
    return {
        "hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 2,
        "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "hidden_act": activation, "eos_token_id": END,
        "bos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip


def stirred(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.2)
    return model.eval()


def peer(activation="quick_gelu", dtype=torch.float32, layers=3):
    """Return transformers' tower, every parameter random."""
    return stirred(transformers.CLIPTextModel(transformers.CLIPTextConfig(**text_sizes(activation, layers))).to(dtype))


def test_embeddings_begin_as_large_as_the_config_says():
    for stds in ({}, {"token_std": 0.5, "position_std": 0.25}):
        encoder = ClipText(config(**{"width": 48, **stds}))
        assert float(encoder.tokens.weight.detach().std()) == pytest.approx(stds.get("token_std", 0.02), rel=0.1)
        assert float(encoder.position.detach().std()) == pytest.approx(stds.get("position_std", 0.01), rel=0.1)


def whole():
    """Return transformers' CLIP with that tower."""
    vision = {
        "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
        "patch_size": 4,
    }  # fmt: skip
    sizes = transformers.CLIPConfig(text_config=text_sizes(), vision_config=vision, projection_dim=20)
    return stirred(transformers.CLIPModel(sizes))


def captions():
    """Return ids and a mask of captions of several lengths, the longest as long as there is room for."""
    ids = torch.randint(3, 50, (4, LENGTH), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([3, LENGTH, 6, 1])
    ids[torch.arange(4), lengths - 1] = END
    mask = torch.arange(LENGTH) < lengths[:, None]
    return ids * mask, mask


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_states_of_the_last_layer_but_one_equal_transformers(activation, dtype, tolerance):
    c, theirs = config(activation), peer(activation, dtype)
    mine = ClipText(c).to(dtype)
    mine.load_state_dict(from_huggingface(theirs.state_dict(), c))
    ids, mask = captions()
    said = theirs(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    expected, found = said.hidden_states[-2] * mask[..., None], mine.encode(ids, mask)
    close(found, expected, tolerance)
    assert (found[~mask] == 0).all()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    grads = from_huggingface({name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}, c)
    named = dict(mine.named_parameters())
    assert named.keys() == grads.keys()
    for name, p in named.items():
        close(p.grad, grads[name], tolerance)


def test_all_public_files_give_one_tower():
    c, clip = config(), whole()
    state = clip.state_dict()
    tower = from_huggingface(state, c)
    alone = {name: x for name, x in state.items() if name.startswith("text_model.")}
    bare = {name.removeprefix("text_model."): x for name, x in alone.items()}
    sizes = WholeConfig(
        patch=4, image_size=16, vision_width=32, vision_layers=2, vision_heads=4, text_width=24, text_layers=3,
        text_heads=2, text_vocab=VOCAB, text_length=LENGTH, embed_dim=20,
    )  # fmt: skip
    openai = whole_to_openai(whole_from_huggingface(state, sizes), sizes)
    openai |= {name: torch.ones(1) for name in ("input_resolution", "context_length", "vocab_size")}
    others = [from_huggingface(alone, c), from_huggingface(bare, c), from_openai(openai, c)]
    others += [from_huggingface(to_huggingface(tower, c), c), from_openai(to_openai(tower, c), c)]
    for other in others:
        assert other.keys() == tower.keys()
        assert all(torch.equal(x, tower[name]) for name, x in other.items())


def test_towers_of_another_depth_are_refused():
    for layers, said in ((2, "has fewer layers than 3"), (4, "tensors have no place")):
        with pytest.raises(BadWeights, match=said):
            from_huggingface(peer(layers=layers).state_dict(), config())


@pytest.mark.parametrize("told", [text_sizes("gelu"), {"text_config": text_sizes("gelu")}])
def test_a_description_of_another_activation_is_refused(told):
    with pytest.raises(BadWeights, match="says hidden_act = gelu, and this model has quick_gelu; --set activation"):
        check_description(told, config())
    check_description(told, config("gelu"))


@pytest.mark.parametrize("make", [whole, peer])
def test_a_published_folder_is_read_by_the_command(tmp_path, capsys, make):
    clip = make()
    clip.save_pretrained(tmp_path / "hf")
    words = (word for name, x in SIZES.items() for word in ("--set", f"{name}={x}"))
    line = ["import", "clip-text-tiny", str(tmp_path / "hf"), "--out", str(tmp_path / "run"), *words, "--json"]
    assert main(line) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["layout"] == "huggingface"
    assert any(name.endswith("encoder.layers.2.mlp.fc1.bias") for name in facts["dropped"])
    assert ("logit_scale" in facts["dropped"]) == (make is whole)
    ids, mask = captions()
    said = getattr(clip, "text_model", clip)(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    close(zoo.load(str(tmp_path / "run")).encode(ids, mask), said.hidden_states[-2] * mask[..., None], 1e-5)
    save_tensors(tmp_path / "hf" / "model.safetensors", {"logit_scale": torch.ones(())})
    assert main([*line[:-1]]) == 2


def test_longer_captions_than_there_are_positions_are_refused():
    with pytest.raises(PartMismatch, match="captions of 13 tokens"):
        ClipText(config()).encode(torch.ones(1, 13, dtype=torch.int64), torch.ones(1, 13, dtype=torch.bool))


@pytest.mark.parametrize(("name", "width"), [("clip-vit-b32-text", 512), ("clip-vit-l14-text", 768)])
def test_published_sizes(name, width):
    c = zoo.resolve(name)
    assert (c.width, c.text_vocab, c.text_length) == (width, 49_408, 77)
    block = 12 * width**2 + 13 * width
    assert c.cost().params == (49_408 + 77) * width + 11 * block


def test_it_stands_in_a_system_for_t5():
    system = zoo.build("imagen-tiny", overrides=["text_encoder=clip-text-tiny"])
    assert system.config.text_encoder.text_vocab == system.tokenizer.vocab_size
    system.tokenizer.fit(Pictures(32), seed=0)
    assert system.generate(["a red circle"], allow_untrained=True).shape == (1, 3, 32, 32)
