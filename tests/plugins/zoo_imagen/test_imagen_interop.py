"""The same numbers as DeepFloyd's code; conftest.py says how its answers were made."""

import pytest
import torch
from attrs import evolve
from torch.nn import functional as F

from zoo.errors import BadWeights, ConfigError
from zoo.interfaces import Cond
from zoo_imagen.interop import from_deepfloyd, to_deepfloyd
from zoo_imagen.model import unet
from zoo_imagen.variants import if_i_xl


def ours(public, state=None):
    model = unet(public.config).double()
    model.load_state_dict(from_deepfloyd(public.state if state is None else state, public.config))
    return model


def asked(public):
    """Return z, log-SNR and condition as their code was given them; it enlarges the picture below itself."""
    schedule = public.config.schedule
    text = public.rule("text", [2, 7, 48], 1.0)
    cond = Cond(text=text)
    if public.config.low:
        low = F.interpolate(public.rule("low", [2, 3, 8, 8], 1.0), (16, 16), mode="bilinear", align_corners=True)
        level = schedule.logsnr(torch.full((2,), 0.25, dtype=torch.float64))
        cond = Cond(text=text, low=low, low_level=level)
    steps = torch.tensor([17.0, 803.0], dtype=torch.float64) / 1000
    return public.rule("x", [2, 3, 16, 16], 1.0), schedule.logsnr(steps), cond


def output(public, model):
    """Return all six channels; theirs does not clamp the variance."""
    z, logsnr, cond = asked(public)
    fixed = model._fixed(cond)
    x = z if fixed.low is None else torch.cat((z, fixed.low), 1)
    embedding = model.activation(model.time(model.schedule.time(logsnr)) + fixed.embedding)
    return model.net(x, embedding, iter(fixed.keys), fixed.mask)


def test_outputs_and_gradients(public):
    model, said = ours(public), public.said
    y = output(public, model)
    assert float((y - said["output"]).detach().abs().max()) <= 1e-12 * float(said["output"].abs().max())
    z, logsnr, cond = asked(public)
    found = model.predict(z, logsnr, cond)
    assert torch.equal(found.mean, y[:, :3])
    assert torch.equal(found.variance, y[:, 3:].clamp(-1, 1))
    (y * public.rule("probe", list(y.shape), 1.0)).sum().backward()
    grads = to_deepfloyd({name: p.grad for name, p in model.named_parameters()}, public.config)
    assert sorted(grads) == sorted(public.state)
    norms = torch.stack([grads[name].norm() for name in sorted(grads)])
    assert int((said["norms"] < 1e-9).sum()) == 1  # of a number added to every key of the pooling, which nothing shows
    assert torch.allclose(norms, said["norms"], rtol=1e-10, atol=1e-9)
    probes = [
        (grads[name] * public.rule(f"probe {name}", list(grads[name].shape), 1.0)).sum() for name in sorted(grads)
    ]
    assert float((torch.stack(probes) - said["probes"]).abs().div(said["norms"] + 1e-3).max()) < 1e-10


def test_a_wrong_weight_would_show(public):
    """Every seventh tensor of theirs moves what is compared above, but what is added to every key of one softmax."""
    names = [name for name in public.state if name != "encoder_pooling.1.k_proj.bias"]
    with torch.no_grad():
        before = output(public, ours(public))
        for name in names[::7]:
            x = public.state[name]
            moved = ours(public, public.state | {name: x + 0.1 * public.rule("other", list(x.shape), 1.0)})
            assert float((output(public, moved) - before).abs().max()) > 1e-6, name


def test_there_and_back(public):
    there = to_deepfloyd(ours(public).state_dict(), public.config)
    assert there.keys() == public.state.keys()
    assert all(torch.equal(there[name], x) for name, x in public.state.items())


def test_wrong_keys_are_named(public):
    first, *_ = public.state
    with pytest.raises(BadWeights, match=r"lack 'time_embed\.0\.weight'"):
        from_deepfloyd({k: x for k, x in public.state.items() if k != "time_embed.0.weight"}, public.config)
    with pytest.raises(BadWeights, match=r"unexpected 'label_emb\.weight'"):
        from_deepfloyd({**public.state, "label_emb.weight": public.state[first]}, public.config)
    with pytest.raises(ConfigError, match="reads 'nothing'"):
        from_deepfloyd(public.state, evolve(public.config, reads="nothing"))


def test_the_published_size_has_their_keys():
    config = if_i_xl()
    with torch.device("meta"):
        state = unet(config).state_dict()
    theirs = to_deepfloyd(state, config)
    assert sum(x.numel() for x in theirs.values()) == 4_304_695_110
    back = from_deepfloyd(theirs, config)
    assert {name: x.shape for name, x in back.items()} == {name: x.shape for name, x in state.items()}
    assert theirs["input_blocks.5.1.encoder_kv.weight"].shape == (2816, 2816, 1)
    assert theirs["encoder_proj.weight"].shape == (2816, 4096)
