"""Parity with the authors' own dVAE code, random weights, both directions, outputs and gradients."""

import attrs
import pytest
import torch
from torch.nn import functional as F

from zoo.errors import BadWeights, ConfigError
from zoo.weights import read_public
from zoo_dvae import configs
from zoo_dvae.interop import from_openai, join, split, to_openai
from zoo_dvae.model import Dvae

dall_e = pytest.importorskip("dall_e")

CONFIG = attrs.evolve(configs.dvae_8192(), n_hid=64, n_init=16, vocab_size=512, image_size=32)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def randomise(module):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 1.5 * max(p[0].numel(), 1) ** -0.5)
    return module


def theirs():
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512)
    decoder = dall_e.Decoder(n_hid=64, n_init=16, vocab_size=512)
    return randomise(encoder), randomise(decoder)


def ours_from(encoder, decoder):
    model = Dvae(CONFIG)
    model.load_state_dict(from_openai(join(encoder.state_dict(), decoder.state_dict()), CONFIG))
    return model


def same(a, b, rtol):
    scale = float(b.detach().abs().max())
    assert scale > 0
    assert float((a - b).detach().abs().max()) <= rtol * scale


def compare(model, encoder, decoder, dtype, rtol):
    """Run both sides on one picture and one soft code; outputs and all gradients must agree."""
    x = torch.rand(2, 3, 32, 32, dtype=dtype) * 0.8 + 0.1
    logits, expected = model.encoder(x), encoder.blocks(x)
    same(logits.permute(0, 3, 1, 2), expected, rtol)
    z = (3 * torch.randn(2, 4, 4, 512, dtype=dtype)).softmax(-1)
    out, expected_out = model.decoder(z), decoder.blocks(z.permute(0, 3, 1, 2))
    same(out, expected_out, rtol)
    weight, weight_out = torch.randn_like(logits), torch.randn_like(out)
    ((logits * weight).sum() + (out * weight_out).sum()).backward()
    ((expected * weight.permute(0, 3, 1, 2)).sum() + (expected_out * weight_out).sum()).backward()
    grads = to_openai({k: p.grad for k, p in model.named_parameters()}, CONFIG)
    reference = {k: p.grad for k, p in join(dict(encoder.named_parameters()), dict(decoder.named_parameters())).items()}
    assert grads.keys() == reference.keys()
    for key in grads:
        same(grads[key], reference[key], rtol)


def test_outputs_and_gradients_agree():
    encoder, decoder = theirs()
    compare(ours_from(encoder, decoder), encoder, decoder, torch.float32, 1e-5)


def test_outputs_and_gradients_agree_in_double_precision(monkeypatch):
    # Their convolution casts its input to float32; with the cast taken out the rest of their code runs in double.
    def convolve(self, x):
        return F.conv2d(x, self.w, self.b, padding=(self.kw - 1) // 2)

    monkeypatch.setattr(dall_e.utils.Conv2d, "forward", convolve)
    encoder, decoder = theirs()
    model = ours_from(encoder, decoder).double()
    compare(model, encoder.double(), decoder.double(), torch.float64, 1e-12)


def test_our_weights_run_in_their_code():
    model = randomise(Dvae(CONFIG))
    encoder, decoder = theirs()
    encoder_state, decoder_state = split(to_openai(model.state_dict(), CONFIG))
    encoder.load_state_dict(encoder_state)
    decoder.load_state_dict(decoder_state)
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = encoder(dall_e.map_pixels(x))
        codes = logits.argmax(1)
        margin = logits.topk(2, dim=1).values
        assert float((margin[:, 0] - margin[:, 1]).min()) > 1e-4
        assert torch.equal(model.encode(x), codes.flatten(1))
        one_hot = F.one_hot(codes, 512).permute(0, 3, 1, 2).float()
        expected = dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]))
        assert torch.allclose(model.decode(codes.flatten(1), ((4, 4),)), expected, atol=1e-5)


def test_round_trip_is_exact():
    state = randomise(Dvae(CONFIG)).state_dict()
    again = from_openai(to_openai(state, CONFIG), CONFIG)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[k], state[k]) for k in state)


def test_published_size_has_their_keys_and_shapes():
    config = configs.dvae_8192()
    with torch.device("meta"):
        model = Dvae(config)
        state = to_openai(model.state_dict(), config)
    shapes = {k: tuple(x.shape) for k, x in state.items()}
    encoder, decoder = split(state)
    assert (len(encoder), len(decoder)) == (74, 76)
    assert shapes["encoder.blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["encoder.blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert shapes["decoder.blocks.input.w"] == (128, 8192, 1, 1)
    assert shapes["decoder.blocks.output.conv.w"] == (6, 256, 1, 1)


def test_missing_and_foreign_keys_are_refused():
    state = to_openai(Dvae(CONFIG).state_dict(), CONFIG)
    key = "encoder.blocks.group_2.block_1.id_path.w"
    lacking = {k: x for k, x in state.items() if k != key}
    with pytest.raises(BadWeights, match=f"lack '{key}'"):
        from_openai(lacking, CONFIG)
    with pytest.raises(BadWeights, match=r"did you mean 'encoder.blocks.group_2.block_1.id_path.W'"):
        from_openai({**lacking, "encoder.blocks.group_2.block_1.id_path.W": state[key]}, CONFIG)
    with pytest.raises(BadWeights, match="unexpected 'extra'"):
        from_openai({**state, "extra": torch.zeros(1)}, CONFIG)


@pytest.mark.parametrize("change", [{"logit_gain": 8.0}, {"mean": 0.9}, {"std": 0.2}, {"bottleneck": 2}])
def test_what_their_code_has_not_is_refused(change):
    config = attrs.evolve(CONFIG, **change)
    for convert in (from_openai, to_openai):
        with pytest.raises(ConfigError, match=next(iter(change))):
            convert({}, config)


@pytest.mark.parametrize("zipped", [True, False])
def test_published_files_are_read_without_their_code(tmp_path, zipped, monkeypatch):
    encoder, decoder = theirs()
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        torch.save(module, tmp_path / f"{name}.pkl", _use_new_zipfile_serialization=zipped)

    def refuse(*args, **kwargs):
        raise AssertionError("a pickled class was constructed")

    for kind in (dall_e.Encoder, dall_e.Decoder, dall_e.utils.Conv2d, torch.nn.Upsample):
        monkeypatch.setattr(kind, "__init__", refuse)
        monkeypatch.setattr(kind, "__setstate__", refuse, raising=False)
    state = read_public(tmp_path)
    monkeypatch.undo()
    expected = join(encoder.state_dict(), decoder.state_dict())
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in expected)
    Dvae(CONFIG).load_state_dict(from_openai(state, CONFIG))
