"""The same numbers as the authors' code; conftest.py says how its answers were made."""

import torch

from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo_vqgan.interop import from_taming, to_taming
from zoo_vqgan.model import Vqgan


def ours(public):
    model = Vqgan(public.config)
    model.load_state_dict(from_taming(public.state, public.config))
    return model


def same(a, b, tolerance):
    """Equal shapes, and values equal up to `tolerance` of the largest one."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def test_codes_and_reconstructions(public):
    model, said = ours(public), public.said
    images = said["images"]
    with torch.no_grad():
        same(model.vectors(images), said["vectors"], 1e-5)
    assert float(said["margin"]) > 1e-4
    codes = model.encode(images)
    assert torch.equal(codes, said["codes"].flatten(1))
    assert len(codes.unique()) > 10
    with torch.no_grad():
        same(model.paint(model.quantiser.decode(said["codes"])), said["reconstruction"], 1e-5)
    expected = (said["reconstruction"].clamp(-1, 1) + 1) / 2
    assert float((model.decode(codes, ((8, 6),)) - expected).abs().max()) <= 1e-5


def test_a_wrong_weight_would_show(public):
    """Every tensor of theirs matters to what is compared above."""
    images = public.said["images"]
    torch.manual_seed(0)
    for name in ("encoder.down.0.downsample.conv.bias", "encoder.down.1.attn.1.k.weight", "decoder.up.2.attn.0.v.bias",
                 "decoder.up.0.block.0.nin_shortcut.weight", "decoder.mid.block_2.norm2.bias"):  # fmt: skip
        state = public.state | {name: public.state[name] + 0.1 * torch.randn_like(public.state[name])}
        model = Vqgan(public.config)
        model.load_state_dict(from_taming(state, public.config))
        with torch.no_grad():
            h, x = model.vectors(images), model.paint(model.quantiser.decode(public.said["codes"]))
        moved = (h - public.said["vectors"]).abs().max() + (x - public.said["reconstruction"]).abs().max()
        assert float(moved) > 1e-3, name


def test_loss_and_gradients(public, monkeypatch):
    """Outputs, both terms of the loss, and every parameter's gradient in training mode, in double precision."""
    model, said = ours(public).double().train(), public.said
    if "gumbel" in said:
        monkeypatch.setattr(Rng, "gumbel", lambda self, *shape, device=None: said["gumbel"].view(2, *shape))
    images = said["images"].double()
    q = model.quantiser.train_codes(model.vectors(images), step=0, rng=Rng(0, range(2)))
    same(model.paint(q.z).detach(), said["double_out"], 1e-11)
    assert float((q.loss.detach().mean() - said["quantiser_loss"]).abs()) <= 1e-8 * float(said["quantiser_loss"])
    losses = model.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(2)))
    assert float((losses["loss"].detach() - said["loss"]).abs()) <= 1e-8 * float(said["loss"])

    losses["loss"].backward()
    state = model.state_dict() | {name: p.grad for name, p in model.named_parameters()}
    grads = to_taming(state, public.config)
    assert sorted(grads) == sorted(public.state)
    names = sorted(grads)
    same(torch.stack([grads[n].norm() for n in names]), said["norms"], 1e-9)
    probes = torch.stack([(grads[n] * public.rule(f"probe {n}", grads[n].shape, 1.0)).sum() for n in names])
    assert float(((probes - said["probes"]).abs() / (said["norms"] + said["norms"].max() * 1e-6)).max()) < 1e-7
