"""The benchmark of S4D at a size that takes no time; the ratio itself is not a test."""

import sys

import pytest
import torch
from torch import nn

from zoo.bench import s4d
from zoo.errors import NotInstalled


def test_a_missing_peer_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.delenv("S4D_FILE", raising=False)
    with pytest.raises(NotInstalled, match=r"git clone https://github.com/state-spaces/s4, and set S4D_FILE"):
        s4d.rows()
    file = tmp_path / "s4d.py"
    file.write_text("import einops\nfrom src.models.nn import DropoutNd\n")
    monkeypatch.setenv("S4D_FILE", str(file))
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(NotInstalled, match="pip install einops"):
        s4d.public()
    assert "src.models.nn" not in sys.modules


class Direct(nn.Module):
    """What the public layer computes, with its weights' names, by a table of powers and a sum over all positions."""

    def __init__(self, h, n=8):
        super().__init__()
        self.h, self.n = h, n
        self.D, self.kernel = nn.Parameter(torch.randn(h)), nn.Module()
        shapes = {"C": (h, n // 2, 2), "log_dt": (h,), "log_A_real": (h, n // 2), "A_imag": (h, n // 2)}
        for name, shape in shapes.items():
            setattr(self.kernel, name, nn.Parameter(torch.randn(shape) / 2))
        self.output_linear = nn.Sequential(nn.Conv1d(h, 2 * h, 1), nn.GLU(-2))

    def forward(self, u):
        k, length = self.kernel, u.shape[-1]
        a = torch.complex(-k.log_A_real.exp(), k.A_imag)
        step = a * k.log_dt.exp()[:, None]
        table = (step[..., None] * torch.arange(length)).exp()
        response = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(k.C) * (step.exp() - 1) / a, table).real
        lag = torch.arange(length)[:, None] - torch.arange(length)
        y = torch.einsum("hij,bhj->bhi", (response[:, lag.clamp(min=0)] * (lag >= 0)), u) + u * self.D[:, None]
        return self.output_linear(nn.functional.gelu(y)), None


def test_rows(monkeypatch):
    for name, size in (("CHANNELS", 4), ("LENGTH", 12)):
        monkeypatch.setattr(s4d, name, size)
    monkeypatch.setattr(s4d, "public", lambda: type("Module", (), {"S4D": Direct}))
    monkeypatch.setattr(s4d, "memory", lambda which, batch: {"ours": 1.0, "peer": 4.0}[which])
    rows = s4d.rows(pairs=1)
    assert [row.sizes["batch"] for row in rows] == [1, 1, 1, 4, 4, 4]
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
    assert rows[2].ratio == 4

    layers = s4d.sides()
    with torch.no_grad():
        layers["ours"].s4d.causal.D.add_(1e-2)
    with pytest.raises(AssertionError, match="the layers differ by"):
        s4d.check(layers, s4d.inputs("ours", 1))
    assert s4d.peak("ours", 1) >= 0
