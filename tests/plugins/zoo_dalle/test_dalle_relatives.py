"""minDALL-E and ruDALL-E against their own code, through fixtures that it wrote.

`data/*.safetensors` hold a state dict (`state.*`), caption ids, codes and logits of the public modules, run once in
torch 2.13 with every parameter drawn anew (matrices N(0, 0.15), vectors N(0, 0.3)): `Transformer1d` of
kakaobrain/minDALL-E at e548007, 2 layers of 16, 5 caption tokens, 3x3 codes; `DalleModel` of ai-forever/ru-dalle at
0255cec, 3 layers of 16, 4 caption tokens, 8x8 codes, version v3, sandwich norms and PB-relax on. Id 0 is padding.
"""

from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file

import zoo
from zoo.errors import BadWeights, ConfigError
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo_dalle import interop, relatives
from zoo_dalle.model import DallePrior

DATA = Path(__file__).parent / "data"
SMALL = {
    "mindalle": attrs.evolve(
        relatives.mindalle_1_3b_prior(), width=16, depth=2, heads=2, vocab_size=12, grids=((3, 3),), text_vocab=20,
        text_length=5,
    ),
    "rudalle": attrs.evolve(
        relatives.rudalle_1_3b_prior(), width=16, depth=3, heads=2, vocab_size=12, grids=((8, 8),), text_vocab=16,
        text_length=4,
    ),
}  # fmt: skip
IN = {"mindalle": interop.from_mindalle, "rudalle": interop.from_rudalle}
OUT = {"mindalle": interop.to_mindalle, "rudalle": interop.to_rudalle}


@pytest.fixture(params=list(SMALL))
def name(request):
    return request.param


@pytest.fixture
def public(name):
    return load_file(DATA / f"{name}.safetensors")


@pytest.fixture
def state(public):
    return {key.removeprefix("state."): x for key, x in public.items() if key.startswith("state.")}


@pytest.fixture
def model(name, state):
    model = DallePrior(SMALL[name]).eval()
    model.load_state_dict(IN[name](state, SMALL[name]))
    return model


def cond(public):
    return Cond(ids=public["text"], mask=public["text"] != 0)


@torch.no_grad()
def test_logits_equal_the_public_code(public, model):
    assert torch.allclose(model.logits(public["codes"], cond(public)), public["image_logits"], atol=2e-6)


@torch.no_grad()
def test_caption_logits_equal_the_public_code(public, model):
    states = model.states(public["codes"][:, :0], cond(public))
    mine = model.caption_head.logits(states[:, : model.prefix.length - 1])
    assert torch.allclose(mine, public["text_logits"], atol=2e-6)


@torch.no_grad()
def test_the_cached_step_equals_the_public_code(public, model):
    # Greedily, as the given codes are not what would be drawn: each is given, and the next one's logits looked at.
    from zoo_dalle.decode import Decoder

    codes = public["codes"]
    decoder = Decoder(model, len(codes))
    logits = [decoder.start(codes[:, :0], cond(public))]
    logits += [decoder.step(codes[:, i], i).clone() for i in range(model.length - 1)]
    assert torch.allclose(torch.stack(logits, 1), public["image_logits"], atol=2e-6)


def test_the_way_back_gives_the_same_weights(name, state, model):
    back = OUT[name](model.state_dict(), SMALL[name])
    dropped = {"rudalle": {f"transformer.{kind}_mask" for kind in ("row", "col", "conv")}}.get(name, set())
    assert back.keys() == state.keys() - dropped
    pads = slice(16, 20)  # ruDALL-E's classes of pads, which are never predicted here
    for key, x in back.items():
        theirs = state[key].clone()
        if key.startswith("to_logits.1"):
            theirs[pads] = 0
        if key == "text_pos_embeddings.weight" and name == "rudalle":
            theirs[-1] = 0
        assert torch.equal(x, theirs), key


def test_sizes_of_the_published_weights():
    # Their own modules, built on the meta device: 1 291 081 728 and 1 310 410 880 parameters. Here are the pads of 64
    # caption positions more, and a position and 128 classes less.
    count = {key: zoo.info(f"{key}-1.3b-prior")["params"] for key in SMALL}
    assert count["mindalle"] - 64 * 1536 == 1_291_081_728
    assert count["rudalle"] + 2048 + 128 * 2049 == 1_310_410_880


@pytest.mark.parametrize("name", ["mindalle"], indirect=True)
def test_learnt_pads_have_no_place_in_mindalle(model, name):
    state = model.state_dict()
    state["prefix.pad.weight"] = state["prefix.pad.weight"] + torch.arange(5)[:, None]
    with pytest.raises(BadWeights, match="one padding piece"):
        interop.to_mindalle(state, SMALL[name])


def test_what_is_missing_or_left_over_is_named(name, state):
    key = next(key for key in state if "blocks.1" in key or "layers.1" in key)
    for given, text in (
        ({k: x for k, x in state.items() if k != key}, f"lack '{key}'"),
        ({**state, "blocks.7.extra": torch.zeros(1)}, "unexpected 'blocks.7.extra'"),
    ):
        with pytest.raises(BadWeights, match=text):
            IN[name](given, SMALL[name])


@pytest.mark.parametrize("name", ["rudalle"], indirect=True)
def test_another_variants_tables_are_refused(state, name):
    with pytest.raises(BadWeights, match=r"'text_embeddings.weight' has 20 rows, and this variant's has 21"):
        interop.from_rudalle(state, attrs.evolve(SMALL[name], text_vocab=17))


def test_another_function_is_refused(name, state):
    with pytest.raises(ConfigError, match="pattern: is 'sparse'"):
        IN[name](state, attrs.evolve(SMALL[name], pattern="sparse"))


def test_a_first_token_that_is_given_is_not_predicted(name, public, model):
    batch, rng = Batch(codes=public["codes"]), Rng(0, range(len(public["codes"])))
    before = model.loss(batch, cond(public), step=0, rng=rng)["text"]
    kept = public["text"][:, 1:] != 0
    logits = model.caption_head.logits(model.states(public["codes"][:, :0], cond(public))[:, :-1])
    nats = torch.nn.functional.cross_entropy(logits[kept], public["text"][:, 1:][kept])
    assert torch.allclose(before, nats)
