"""The same numbers as the authors' KL autoencoder and diffusers'; conftest.py says how their answers were made."""

import pytest
import torch

from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo_vqgan.kl import Kl


def ours(kl_public):
    model = Kl(kl_public.config)
    model.load_state_dict(kl_public.read(kl_public.state, kl_public.config))
    return model.double()


def same(a, b, tolerance):
    """Equal shapes, and values equal up to `tolerance` of the largest one."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.fixture
def noise(kl_public, monkeypatch):
    """Let every posterior be drawn from with the noise they were."""
    x = kl_public.rule("noise", kl_public.said["mean"].shape, 1.0)
    monkeypatch.setattr(Rng, "normal", lambda self, *shape, device=None: x.view(2, *shape))
    return x


def test_posterior_and_pictures(kl_public, noise):
    model, said = ours(kl_public).eval(), kl_public.said
    images = said["images"].double()
    with torch.no_grad():
        mean, logvar = model.posterior(images)
        same(mean, said["mean"], 1e-10)
        same(logvar, said["logvar"], 1e-10)
        z = said["mean"] + (said["logvar"] / 2).exp() * noise
        same(model.paint(z), said["decoded"], 1e-10)
    same(model.encode(images), 0.18215 * said["mean"], 1e-10)
    same(model.encode(images, Rng(0, range(2))), 0.18215 * z, 1e-10)
    same(model.decode(0.18215 * z), (said["decoded"].clamp(-1, 1) + 1) / 2, 1e-10)


def test_single_precision(kl_public):
    model, said = ours(kl_public).float().eval(), kl_public.said
    with torch.no_grad():
        mean, logvar = model.posterior(said["images"])
    same(mean.double(), said["mean"], 1e-5)
    same(logvar.double(), said["logvar"], 1e-5)


def test_loss_and_gradients(kl_public, noise):
    """Theirs is a sum over the values of a picture, ours its mean; every parameter's gradient in training mode."""
    model, said = ours(kl_public).train(), kl_public.said
    images = said["images"].double()
    loss = images[0].numel() * model.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(2)))["loss"]
    assert float((loss.detach() - said["loss"]).abs()) <= 1e-10 * float(said["loss"])
    loss.backward()
    grads = kl_public.write({name: p.grad for name, p in model.named_parameters()}, kl_public.config)
    names = sorted(kl_public.state)
    same(torch.stack([grads[n].norm() for n in names]), said["norms"], 1e-10)
    probes = torch.stack([(grads[n] * kl_public.rule(f"probe {n}", grads[n].shape, 1.0)).sum() for n in names])
    assert float(((probes - said["probes"]).abs() / (said["norms"] + said["norms"].max() * 1e-6)).max()) < 1e-8


def test_a_wrong_weight_would_show(kl_public):
    """Every tensor of theirs matters to what is compared above: one that is moved moves it."""
    images = kl_public.said["images"]
    torch.manual_seed(0)
    moved = [name for name in kl_public.state if "mid" in name or "shortcut" in name or "sample" in name]
    assert len(moved) > 30
    for name in moved[::3]:
        state = kl_public.state | {name: kl_public.state[name] + 0.1 * torch.randn_like(kl_public.state[name])}
        model = Kl(kl_public.config)
        model.load_state_dict(kl_public.read(state, kl_public.config))
        with torch.no_grad():
            mean, _ = model.posterior(images)
            x = model.paint(kl_public.said["mean"])
            plain = ours(kl_public).paint(kl_public.said["mean"])
        if name.endswith(("k.bias", "to_k.bias")):
            continue  # softmax does not see it: the same is added to every score
        change = float((mean - kl_public.said["mean"]).abs().max() + (x - plain).abs().max())
        assert change > 1e-3, name
