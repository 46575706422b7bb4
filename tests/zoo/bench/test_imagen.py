"""The benchmark's sides do the same amount of work; nothing is timed here."""

import sys

import pytest
import torch

from zoo.bench import imagen
from zoo.bench.imagen_peers import PEERS, Size
from zoo.errors import NotInstalled

SMALL = Size(width=32, mults=(1, 2), blocks=1, attention=(2,), side=8, text_width=16, tokens=5)


def made(name):
    if name == "ours":
        return imagen.our_model(SMALL)
    try:
        return imagen.stirred(PEERS[name](SMALL))
    except NotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["ours", *PEERS])
def test_a_side_predicts_guides_and_learns(name):
    model = made(name)
    with torch.no_grad():
        assert imagen.forward(model, SMALL, 2)().shape == (2, 3, 8, 8)
    assert imagen.sample(model.eval(), SMALL, 2)().shape == (2, 3, 8, 8)
    before = [p.detach().clone() for p in model.parameters()]
    imagen.train(model.train(), SMALL, 2)()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_diffusers_counts_what_ours_counts():
    """The same network: as many parameters and FLOPs at the size that is timed."""
    pytest.importorskip("diffusers")
    ours = imagen.our_model(Size())
    try:
        theirs = PEERS["diffusers"](Size())
    except NotInstalled as error:
        pytest.skip(str(error))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    flops = [imagen.counted(imagen.forward(model, Size(), 1)) for model in (ours, theirs)]
    assert flops[0] == pytest.approx(flops[1], rel=0.01)


def test_guidance_is_that_of_the_two_predictions():
    model = imagen.our_model(SMALL).eval()
    x, text, mask = imagen.inputs(SMALL, 2)
    cond = imagen.Cond(text=text, text_mask=mask)
    null = imagen.Cond(text=text, text_mask=mask, drop=torch.ones(2, dtype=torch.bool))
    with torch.inference_mode():
        known, unknown = (model.predict(x, torch.zeros(2), c).mean for c in (cond, null))
        wanted = unknown + imagen.GUIDANCE * (known - unknown)
    assert torch.allclose(imagen.sample(model, SMALL, 2)(), wanted, atol=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_peer_names_the_extra(name, monkeypatch):
    for module in ("imagen_pytorch", "imagen_pytorch.imagen_pytorch", "diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalled, match=r"image-zoo\[bench\]"):
        PEERS[name](SMALL)


def test_a_paper_card_predicts_in_half_precision():
    """The command for full widths, on a card that fits a test."""
    assert "predicted [1, 3, 16, 16]" in imagen.paper("imagen-sr-tiny")
    assert imagen.paper("imagen-base-tiny").endswith(" s, finite")
