"""T5's encoder against transformers' T5EncoderModel, and its sizes."""

import attrs
import pytest
import torch

import zoo
from zoo.errors import ConfigError
from zoo.nn.residual import residuals
from zoo.testing.kit import one_thread
from zoo_text import t5_configs
from zoo_text.t5_configs import T5
from zoo_text.t5_interop import from_transformers, to_transformers
from zoo_text.t5_model import T5Encoder, _buckets

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def config(activation="gated-gelu", **more):
    """Return a config whose sizes all differ."""
    sizes = {"width": 32, "depth": 3, "heads": 4, "head_width": 6, "hidden": 40, "text_vocab": 50, "text_length": 30}
    return T5(activation=activation, **sizes | more)


def peer(c, dtype=torch.float32):
    """Return transformers' encoder of that config, every parameter random."""
    sizes = {"vocab_size": c.rows, "d_model": c.width, "d_kv": c.head_width, "d_ff": c.hidden, "num_layers": c.depth}
    sizes |= {"num_heads": c.heads, "feed_forward_proj": c.activation, "dropout_rate": 0.0}
    sizes |= {"relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": c.max_distance}
    model = transformers.T5EncoderModel(transformers.T5Config(**sizes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def wide_norm(self, x):
    """transformers' norm without its rounding of the mean square to fp32, which double precision would show."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def ours(c, state, dtype=torch.float32):
    """Return our encoder with these public weights."""
    model = T5Encoder(c).to(dtype)
    model.load_state_dict(from_transformers(state, c))
    return model


def captions(c, rows=4, length=30):
    """Return ids and a mask of captions of 1, 2, ... tokens, the last as long as there is room for; padding is 0."""
    ids = torch.randint(1, c.text_vocab, (rows, length), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([*range(1, rows), length])
    mask = torch.arange(length) < lengths[:, None]
    return ids * mask, mask


def close(a, b, tolerance):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.mark.parametrize("activation", ["gated-gelu", "relu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_outputs_and_gradients_equal_transformers(activation, dtype, tolerance, monkeypatch):
    if dtype == torch.float64:
        monkeypatch.setattr(transformers.models.t5.modeling_t5.T5LayerNorm, "forward", wide_norm)
    c = config(activation, buckets=16, max_distance=20)
    theirs = peer(c, dtype)
    mine = ours(c, theirs.state_dict(), dtype)
    ids, mask = captions(c)
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask[..., None]
    found = mine.encode(ids, mask)
    close(found, expected, tolerance)
    assert (found[~mask] == 0).all()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    grads = from_transformers(grads, c)
    named = dict(mine.named_parameters())
    assert named.keys() == grads.keys()
    for name, p in named.items():
        assert p.grad.abs().max() > 0, name
        close(p.grad, grads[name], tolerance)


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (16, 20), (32, 100), (8, 64), (64, 1000)])
def test_buckets_are_those_of_the_original(buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    length = 300
    offsets = torch.arange(1 - length, length)
    expected = T5Attention._relative_position_bucket(offsets, True, buckets, farthest)
    assert list(_buckets(length, buckets, farthest)) == expected.tolist()


def test_the_bias_is_by_offset():
    c = config()
    model = ours(c, peer(c).state_dict())
    bias = model.bias(torch.ones(1, 9, dtype=torch.bool))[0]
    table, buckets = model.position.weight, _buckets(9, c.buckets, c.max_distance)
    for query, key in [(0, 0), (0, 8), (8, 0), (3, 5), (5, 3)]:
        assert torch.equal(bias[:, query, key], table[buckets[key - query + 8]])


def test_a_caption_of_padding_alone_is_zero_and_has_a_finite_gradient():
    c = config()
    model = ours(c, peer(c).state_dict())
    ids, mask = captions(c)
    mask[1] = False
    x = model.encode(ids, mask)
    assert not x[1].any()
    assert x[2].any()
    x.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not model.encode(ids, torch.zeros_like(mask)).any()


def test_columns_of_padding_change_nothing():
    c = config()
    model = ours(c, peer(c).state_dict())
    ids, mask = captions(c, length=7)
    wider = [torch.nn.functional.pad(x, (0, 20)) for x in (ids, mask)]
    assert torch.equal(model.encode(*wider)[:, :7], model.encode(ids, mask))
    assert model.encode(*wider).shape == (4, 27, 32)


def test_bfloat16_is_near():
    c = config()
    model = ours(c, peer(c).state_dict())
    ids, mask = captions(c)
    exact = model.encode(ids, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model.encode(ids, mask)
    for x in (cast, model.bfloat16().encode(ids, mask)):
        assert torch.nn.functional.cosine_similarity(x.double()[mask], exact.double()[mask]).min() > 0.99


def test_initial_values_are_t5s():
    """Of transformers' own initialisation, tensor by tensor: the same spread."""
    c = config(width=64, hidden=256, heads=8, head_width=16, text_vocab=1000)
    sizes = {"vocab_size": 1000, "d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 3, "num_heads": 8}
    torch.manual_seed(0)
    theirs = transformers.T5EncoderModel(transformers.T5Config(**sizes, feed_forward_proj="gated-gelu")).state_dict()
    for name, x in to_transformers(T5Encoder(c).state_dict(), c).items():
        if "norm" in name:
            assert (x == 1).all()
        else:
            assert float(x.std()) == pytest.approx(float(theirs[name].std()), rel=0.25), name
            assert abs(float(x.mean())) < 0.3 * float(x.std()), name


@pytest.mark.parametrize(
    ("name", "whole", "without"),
    [
        ("t5-v1.1-small", 35_332_800, None),
        ("t5-v1.1-base", 109_628_544, None),
        ("t5-v1.1-large", 341_231_104, None),
        ("t5-v1.1-xl", 1_223_527_424, None),
        ("t5-v1.1-xxl", 4_762_310_656, 4_630_714_368),
    ],
)
def test_published_sizes(name, whole, without):
    c = zoo.resolve(name)
    assert (c.rows, c.text_vocab) == (32_128, 32_100)
    cost = c.cost()
    assert cost.params == whole
    assert without is None or cost.params - c.rows * c.width == without


@pytest.mark.parametrize("size", ["small", "base", "large", "3b", "11b"])
def test_the_first_version_has_transformers_sizes(size):
    c = zoo.resolve(f"t5-v1.0-{size}")
    sizes = {"d_model": c.width, "d_kv": c.head_width, "d_ff": c.hidden, "num_layers": c.depth, "num_heads": c.heads}
    with torch.device("meta"):
        theirs = transformers.T5EncoderModel(transformers.T5Config(vocab_size=32128, **sizes))
    assert c.cost().params == sum(p.numel() for p in theirs.parameters())


def test_every_layer_is_two_residual_sums_and_the_bias_is_in_none():
    names = [name for name, _ in residuals(T5Encoder(config()))]
    assert names == [f"blocks.{i}.{branch}" for i in range(3) for branch in ("attention", "mlp")]


def test_gradient_scales_of_branches_reach_their_own_parameters_alone():
    """In fp16 under a scale, also where the bias, whose gradient comes out of every branch, meets padding."""
    c = config()
    ids, mask = captions(c)

    def norms(scale):
        model = ours(c, {name: x * 0.3 for name, x in peer(c).state_dict().items()}).train()
        for _, block in residuals(model):
            block.grad_scale = torch.tensor(scale)
        (model.encode(ids, mask) ** 2).sum().backward()
        return {name: float(p.grad.norm()) for name, p in model.named_parameters()}

    one, eight = norms(1.0), norms(8.0)
    for name, x in one.items():
        assert eight[name] / x == pytest.approx(8.0 if ".branch." in name else 1.0, rel=0.1), name


def test_the_table_is_rounded_up():
    assert config(round_to=8).rows == 56
    assert T5Encoder(config(round_to=8)).tokens.weight.shape == (56, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"buckets": 30}, "buckets: 30 is not a multiple of 4"), ({"max_distance": 8}, "max_distance: 8 is within the 8")],
)
def test_what_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        config(**change)


def test_a_vocabulary_is_needed():
    with pytest.raises(ConfigError, match="text_vocab"):
        T5Encoder(attrs.evolve(t5_configs.t5(), text_vocab=None))
