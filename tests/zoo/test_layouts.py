"""Which layout a state dict has, and the way there and back, for every card with a public layout."""

import attrs
import pytest
import torch

from zoo.catalogue import catalogue
from zoo.construct import construct
from zoo.errors import BadWeights, ConfigError, PartMismatch, UnknownName
from zoo.layouts import find, layouts_of, part_of, read, write
from zoo.resolution import model_spec, resolve_tree
from zoo.specs import ModelSpec


def part(name, role=None, overrides=()):
    node, config = resolve_tree(name, overrides)
    return part_of(node, config, construct(node, config, device="meta"), role)


def public(of, layout):
    """Return weights of a part in a layout, on the CPU."""
    return {key: torch.zeros(x.shape) for key, x in write(of, layout, of.module.state_dict()).items()}


def cards():
    names = []
    for card in catalogue().cards.values():
        if card.kind != "generator" and card.origin == "image-zoo":
            names += [(card.name, layout) for layout in model_spec(card).exports]
    return names


@pytest.mark.parametrize(("name", "layout"), cards())
def test_there_and_back_and_found(name, layout):
    mine = part(name)
    try:
        theirs = write(mine, layout, mine.module.state_dict())
        back = read(mine, layout, theirs)
    except ConfigError:
        pytest.skip("a variant that the public code has not, or whose files do not hold all of it")
    own = mine.module.state_dict()
    assert {key: x.shape for key, x in back.items()} == {key: x.shape for key, x in own.items()}
    assert find(mine, theirs, "x") == layout
    assert find(mine, own, "x") == "zoo"


def test_parts_and_what_they_read():
    assert layouts_of(resolve_tree("dalle-tiny")[0])["reranker"] == ["huggingface", "openai"]
    assert "tokenizer" not in layouts_of(resolve_tree("dalle-tiny")[0])
    assert part("dalle-tiny", "reranker.tokenizer").card == "bpe-tiny"
    assert part("clip-tiny", "reranker.tokenizer").card == "bpe-tiny"
    with pytest.raises(PartMismatch, match="say which part with --part; public weights: codebook, reranker"):
        part("dalle-tiny")
    with pytest.raises(UnknownName, match="did you mean 'codebook'"):
        part("dalle-tiny", "codebok")


def test_the_nearest_layout_says_what_is_wrong():
    clip = part("clip-tiny")
    state = public(clip, "openai")
    lacking = {key: x for key, x in state.items() if key != "visual.proj"}
    with pytest.raises(
        BadWeights, match=r"any layout \(huggingface, openai, zoo\); nearest is openai: .*'visual.proj'"
    ):
        find(clip, lacking, "x.pt")
    with pytest.raises(BadWeights, match="'clip-tiny' in layout huggingface: no tensor"):
        find(clip, lacking, "x.pt", "huggingface")
    with pytest.raises(BadWeights, match=r"nearest is openai: 1 tensors have no place .*\(extra\)"):
        find(clip, {**state, "extra": torch.zeros(1)}, "x.pt")
    with pytest.raises(BadWeights, match=r"the file has keys like 'conv\.weight'"):
        find(clip, {"conv.weight": torch.zeros(1)}, "x.pt")
    with pytest.raises(UnknownName, match="did you mean 'openai'"):
        find(clip, state, "x.pt", "openay")


def test_another_card_is_named_with_key_and_shapes():
    state = public(part("clip"), "huggingface")
    with pytest.raises(BadWeights) as info:
        find(part("clip-tiny"), state, "x.pt")
    assert "token_embedding.weight' has shape [1024, 96], the model's is [384, 32]" in str(info.value)
    assert str(info.value).endswith("; these are weights of 'clip': zoo import clip x.pt --out RUN")
    with pytest.raises(BadWeights, match=r"these are weights of 'clip': add --set reranker=clip$"):
        find(part("dalle-tiny", "reranker"), state, "x.pt")
    with pytest.raises(BadWeights, match=r"the model's is .*these are weights of 'clip-tiny': zoo import clip-tiny x"):
        find(part("clip"), public(part("clip-tiny"), "openai"), "x")
    other = {**state, "visual_projection.weight": torch.zeros(24, 97)}
    with pytest.raises(BadWeights) as info:
        find(part("clip"), other, "x.pt")
    assert "'visual_projection.weight' has shape [24, 97], the model's is [96, 96]" in str(info.value)
    assert "these are weights of" not in str(info.value)


def test_a_file_that_fits_several_layouts_is_not_guessed():
    same = dict.fromkeys("ab", "zoo_clip.interop:from_openai")
    clip = part("clip-tiny")
    state = public(clip, "openai")
    clip = attrs.evolve(clip, spec=ModelSpec(interface="reranker", config="", build="", variants={}, interop=same))
    with pytest.raises(BadWeights, match=r"several layouts \(a, b\); choose with --layout"):
        find(clip, state, "x.pt")
    assert find(clip, state, "x.pt", "b") == "b"
