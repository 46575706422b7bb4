"""The benchmark's sides do the same amount of work; nothing is timed here."""

import sys

import pytest
import torch

from zoo.bench import imagen
from zoo.bench.imagen_peers import PEERS, Size
from zoo.errors import NotInstalled

SMALL = Size(width=32, mults=(1, 2), blocks=1, attention=(2,), side=8, text_width=16, tokens=5)


def made(name, size=SMALL):
    if name == "ours":
        return imagen.our_model(size)
    try:
        return imagen.stirred(PEERS[name](size))
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


DIFFUSERS = (24_669_571, 8_947_861_504)
"""Parameters, and FLOPs of a picture, of diffusers 0.42.1's at the size that is timed."""


@pytest.mark.parametrize("name", ["ours", "diffusers"])
def test_diffusers_counts_what_ours_counts(name):
    """The same network: as many parameters and FLOPs."""
    model = made(name, Size())
    counts = sum(p.numel() for p in model.parameters()), imagen.counted(imagen.forward(model, Size(), 1))
    assert counts == DIFFUSERS


def test_the_share_of_the_peak_counts_what_is_timed():
    """An update is three passes, but for gradients of the picture; guidance two, but for the caption's keys."""
    model = imagen.our_model(SMALL)
    once, step, guided = (
        imagen.counted(work(model, SMALL, 2)) for work in (imagen.forward, imagen.train, imagen.sample)
    )
    assert 2.9 * once < step < 3 * once
    _, text, mask = imagen.inputs(SMALL, 2)
    with torch.no_grad():
        keys = imagen.counted(lambda: model.conditioned(imagen.Cond(text=text, text_mask=mask)))
    assert keys > 0
    assert guided == 2 * (once - keys)


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


def test_a_picture_of_the_cards_own_size_is_drawn():
    for name, side in (("imagen-sr-tiny", 32), ("imagen-base-tiny", 16)):
        said = imagen.whole(name)
        assert f"drew [1, 3, {side}, {side}]" in said
        assert " s, finite; " in said
        assert "GiB at its peak" in said
