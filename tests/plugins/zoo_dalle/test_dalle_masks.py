"""The masks against definitions written here from the paper's text, and against the closed forms of public code."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from zoo_dalle.attention import dense
from zoo_dalle.banded import banded
from zoo_dalle.blocked import blocked
from zoo_dalle.configs import layer_kinds, seen
from zoo_dalle.masks import Masks, band, visible

GRIDS = [(4, 4), (5, 3), (3, 7), (1, 6), (6, 1), (9, 13)]


def sees(kind, q, k, grid, kernel):
    """Return whether image position q may attend to image position k, straight from the paper's description."""
    w = grid[1]
    if k > q:
        return False
    if kind == "row":  # a raster window of one row's length plus the query itself
        return k >= q - w
    if kind == "column":
        return k % w == q % w
    half = kernel // 2
    if kind == "window":  # cut off at the edges
        return q // w - k // w <= half and abs(q % w - k % w) <= half
    return kind == "full" or any(q + dr * w + dc == k for dr in range(-half, 1) for dc in range(-half, half + 1))


@pytest.mark.parametrize("kernel", [3, 11])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["row", "column", "conv", "window", "full"])
def test_masks_equal_their_definition(kind, grid, kernel):
    prefix, n = 5, grid[0] * grid[1]
    mask = visible(kind, prefix, grid, kernel)
    for q in range(prefix + n):
        for k in range(prefix + n):
            text = k <= q
            expected = text if k < prefix else q >= prefix and sees(kind, q - prefix, k - prefix, grid, kernel)
            assert bool(mask[q, k]) == expected, (q, k)


@pytest.mark.parametrize(("kind", "image", "whole"), [
    ("row", 33_264, 328_304), ("column", 16_896, 311_936), ("conv", 57_169, 352_209),
])  # fmt: skip
def test_key_counts_of_the_paper_size(kind, image, whole):
    mask = visible(kind, 256, (32, 32), 11)
    assert mask.shape == (1280, 1280)
    assert int(mask[256:, 256:].sum()) == image
    assert int(mask.sum()) == whole
    assert mask[256:, :256].all()
    causal = torch.ones(1280, 1280, dtype=torch.bool).tril()
    assert int(causal.sum()) == 819_840
    assert int(causal[256:, 256:].sum()) == 524_800
    assert not (mask & ~causal).any()


def test_the_figures_examples():
    def keys(kind, q, kernel=11):
        return visible(kind, 0, (4, 4), kernel)[q].nonzero().flatten().tolist()

    assert keys("row", 5) == [1, 2, 3, 4, 5]
    assert keys("column", 8) == [0, 4, 8]
    assert keys("conv", 5, 3) == [0, 1, 2, 4, 5]


def test_conv_window_of_the_paper_has_61_keys():
    assert len(seen("conv", (32, 32), 11, 16 * 32 + 16)) == 61


@pytest.mark.parametrize(("text", "n"), [(8, 4), (6, 16), (3, 13)])
def test_row_and_column_equal_public_code(text, n):
    # The open re-implementation's closed forms, on sequence positions.
    q, k = torch.arange(text + n * n)[:, None], torch.arange(text + n * n)
    causal, is_text = k <= q, k < text
    assert torch.equal(visible("row", text, (n, n), 11), causal & (is_text | (q - k <= n)))
    assert torch.equal(visible("column", text, (n, n), 11), causal & (is_text | ((q - k) % n == 0)))


def test_layer_kinds_of_64_layers():
    kinds = layer_kinds(64)
    assert kinds[:4] == ("row", "column", "row", "row")
    assert [i for i, kind in enumerate(kinds, 1) if kind == "column"] == list(range(2, 64, 4))
    assert (kinds.count("column"), kinds.count("row"), kinds.count("conv")) == (16, 47, 1)
    assert kinds[-1] == "conv"


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 12, 64])
def test_layer_kinds_equal_public_code(depth):
    # Its rule counts layers from 0.
    public = ["conv" if i == depth - 1 else "column" if (i - 1) % 4 == 0 else "row" for i in range(depth)]
    assert list(layer_kinds(depth)) == public


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_column_attention_on_transposed_states_equals_the_mask(grid):
    (h, w), prefix = grid, 5
    n, generator = h * w, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, prefix + n, 8, generator=generator, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=visible("column", prefix, grid, 11))[:, prefix:]

    def transposed(x):
        return x[:, prefix:].unflatten(1, (h, w)).transpose(1, 2)  # [.., w, h, E]: a column in one piece

    for column in range(w):
        keys, values = (torch.cat((x[:, :prefix], transposed(x)[:, column]), 1) for x in (k, v))
        mask = torch.cat((torch.ones(h, prefix), torch.ones(h, h).tril()), 1).bool()
        mine = F.scaled_dot_product_attention(transposed(q)[:, column], keys, values, attn_mask=mask)
        assert torch.allclose(mine, expected.unflatten(1, (h, w))[:, :, column], atol=1e-12)


def test_masks_are_made_once_and_serve_training_after_inference():
    masks = Masks(3, (4, 4), 11)
    with torch.inference_mode():
        first = masks.dense("row", 19, torch.device("cpu"))
    assert not first.is_inference()
    assert masks.dense("row", 19, torch.device("cpu")).data_ptr() == first.data_ptr()
    assert torch.equal(masks.dense("row", 7, torch.device("cpu")), visible("row", 3, (4, 4), 11)[:7, :7])


@pytest.mark.parametrize("missing", [0, 1, 4])
@pytest.mark.parametrize("prefix", [1, 5])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["row", "column", "conv", "window"])
def test_blocks_equal_the_dense_mask_forward_and_backward(kind, grid, prefix, missing):
    length, device = prefix + max(1, grid[0] * grid[1] - missing), torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, length, 3, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(2, length, 8, generator=generator, dtype=torch.float64)
    expected = dense(qkv, visible(kind, prefix, grid, 5)[:length, :length])
    mine = banded(qkv, band(kind, prefix, grid, 5, device))
    assert torch.allclose(mine, expected, atol=1e-12)
    (one,), (other,) = (torch.autograd.grad(y, qkv, upstream, retain_graph=True) for y in (mine, expected))
    assert torch.allclose(one, other, atol=1e-12)
    if kind in ("row", "column"):
        kept = blocked(qkv, band(kind, prefix, grid, 5, device))
        assert torch.allclose(kept, expected, atol=1e-12)
        assert torch.allclose(*torch.autograd.grad(kept, qkv, upstream), other, atol=1e-12)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
def test_blocks_in_half_precision_are_as_near_to_fp64_as_the_dense_call(kind):
    grid, prefix = (6, 8), 5
    qkv = torch.randn(2, prefix + 48, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    mask, blocks = visible(kind, prefix, grid, 5), band(kind, prefix, grid, 5, torch.device("cpu"))
    exact = dense(qkv.bfloat16().double(), mask)
    mine, usual = (y.double() for y in (banded(qkv.bfloat16(), blocks), dense(qkv.bfloat16(), mask)))
    assert mine.shape == exact.shape
    assert (mine - exact).abs().max() <= 2 * (usual - exact).abs().max()


def test_blocks_take_any_layout_of_their_input_and_need_a_code():
    blocks, generator = band("row", 3, (4, 5), 5, torch.device("cpu")), torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 23, 3, 4, 2, generator=generator, dtype=torch.float64).transpose(3, 4)  # not in one piece
    assert torch.allclose(banded(qkv, blocks), dense(qkv.contiguous(), visible("row", 3, (4, 5), 5)), atol=1e-12)
    with pytest.raises(ValueError, match="one code or more"):
        banded(qkv[:, :3], blocks)


def test_large_grids_are_worked_on_in_blocks():
    device = torch.device("cpu")
    masks = Masks(3, (23, 23), 11)
    ways = {kind: [masks.attend(kind, 3 + n, device).func for n in (127, 128, 299, 300, 499, 500, 529)]
            for kind in ("row", "column", "conv", "window", "full")}  # fmt: skip
    assert ways["row"] == ways["column"] == [dense, *[blocked] * 4, banded, banded]
    assert ways["conv"] == ways["window"] == [dense] * 3 + [banded] * 4
    assert ways["full"] == [dense] * 7


def test_no_scores_of_a_large_grid_are_ever_whole():
    # The largest tensor made is a head's gradients of all runs, 32 of 197 codes, or the [1024,512] of all queries.
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            made.extend(x.numel() for x in (out if isinstance(out, tuple | list) else [out]) if isinstance(x, Tensor))
            return out

    blocks = band("conv", 256, (32, 32), 11, torch.device("cpu"))
    qkv = torch.randn(1, 1280, 3, 8, 8, requires_grad=True)
    with Watch():
        banded(qkv, blocks).sum().backward()
    assert max(made) < 1280 * 1280 / 4
