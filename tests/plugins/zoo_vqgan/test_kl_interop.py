"""The three public layouts of the KL autoencoder: names, sizes, round trips, `zoo import` and `zoo export`."""

import hashlib
import json

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.cli import main
from zoo.errors import BadWeights, ConfigError
from zoo_vqgan import configs, kl_configs, kl_interop
from zoo_vqgan.kl import Kl

COUNTS = {
    "encoder": 34_163_592, "decoder": 49_490_179, "quant_conv": 72, "post_quant_conv": 20, "all": 83_653_863,
}  # fmt: skip
"""Of the authors' AutoencoderKL without its loss, and of diffusers', counted over their parameters."""
DIGESTS = {  # sha256 over "name shape\n" of each tensor in sorted order, of their state dicts of kl-f8
    "ldm": "a0c24ae5e2efcfb40b2c83e1ff7ce960f45180d423ae15330a5622360a52514e",
    "diffusers": "5a0ba4e758a914142de788cfdc978a9e45274c037ef49e4aeac28723907be7c6",
}
SMALL = ("net.channels=32", "net.groups=32", "scale=0.5")
"""What makes the tiny card one that all three layouts have."""


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def small(layout="ldm"):
    """Return (config, our random weights, the same in a layout)."""
    config = zoo.resolve("kl-tiny", SMALL)
    torch.manual_seed(0)
    own = Kl(config).state_dict()
    return config, own, getattr(kl_interop, f"to_{layout.replace('-', '_')}")(own, config)


def fails(capsys, *arguments):
    """Run a command that ends with one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("layout", DIGESTS)
def test_the_published_size(layout):
    config = kl_configs.kl_f8()
    with torch.device("meta"):
        state = getattr(kl_interop, f"to_{layout}")(Kl(config).state_dict(), config)
    counts = {"all": 0}
    for key, x in state.items():
        for part in (key.partition(".")[0], "all"):
            counts[part] = counts.get(part, 0) + x.numel()
    assert counts == COUNTS
    assert counts["all"] == config.cost().params
    lines = "".join(f"{key} {list(x.shape)}\n" for key, x in sorted(state.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == DIGESTS[layout]


def test_round_trips(kl_public):
    own = kl_public.read(kl_public.state, kl_public.config)
    assert same(kl_public.write(own, kl_public.config), kl_public.state)
    assert same(kl_public.read(kl_public.write(own, kl_public.config), kl_public.config), own)
    Kl(kl_public.config).load_state_dict(own)
    half = {name: x.half() for name, x in kl_public.state.items()}
    assert same(kl_public.write(kl_public.read(half, kl_public.config), kl_public.config), half)


def test_the_layouts_say_the_same():
    config, own, ldm = small()
    assert same(kl_interop.from_ldm(ldm, config), own)
    assert same(kl_interop.from_stable_diffusion({f"first_stage_model.{k}": x for k, x in ldm.items()}, config), own)
    assert same(kl_interop.from_diffusers(kl_interop.to_diffusers(own, config), config), own)


def test_what_is_no_weight_of_it_is_dropped():
    config, own, ldm = small()
    loss = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4)}
    assert same(kl_interop.from_ldm(ldm | loss, config), own)
    system = {f"first_stage_model.{k}": x for k, x in (ldm | loss).items()}
    system |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(1000)}
    assert same(kl_interop.from_stable_diffusion(system, config), own)


def test_a_system_without_a_first_stage_says_so():
    config, _, ldm = small()
    with pytest.raises(BadWeights, match=r"no KL autoencoder: none of its \d+ names begins with 'first_stage_model\.'"):
        kl_interop.from_stable_diffusion(ldm, config)


def test_older_names_of_the_attention_are_read():
    config, own, _ = small()
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {}
    for key, x in kl_interop.to_diffusers(own, config).items():
        found = next((new for new in names if f".attentions.0.{new}." in key), None)
        older[key.replace(found, names[found]) if found else key] = x
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in older
    assert same(kl_interop.from_diffusers(older, config), own)


def test_missing_and_foreign_keys_are_refused(kl_public):
    key = next(name for name in kl_public.state if "shortcut.weight" in name)
    lacking = {k: x for k, x in kl_public.state.items() if k != key}
    with pytest.raises(BadWeights, match=f"KL autoencoder weights lack '{key}'"):
        kl_public.read(lacking, kl_public.config)
    with pytest.raises(BadWeights, match="unexpected 'extra'"):
        kl_public.read(kl_public.state | {"extra": torch.zeros(1)}, kl_public.config)
    with pytest.raises(BadWeights, match=r"lack 'encoder\.input\.weight'"):
        kl_public.write({}, kl_public.config)


def test_what_a_layout_has_not_is_refused():
    with pytest.raises(ConfigError, match=r"net\.groups: is 4"):
        kl_interop.to_ldm({}, kl_configs.kl_tiny())
    attentive = attrs.evolve(kl_configs.kl_f8(), net=configs.Net(z_channels=4))
    with pytest.raises(ConfigError, match=r"net\.attention"):
        kl_interop.to_diffusers({}, attentive)
    with pytest.raises(ConfigError, match="channels: is 3"):
        kl_interop.to_diffusers({}, attrs.evolve(kl_configs.kl_f8(), channels=3))
    config = kl_configs.kl_tiny()
    with pytest.raises(ConfigError, match="scale: is measured"):
        kl_interop.from_diffusers(kl_interop.to_diffusers(Kl(config).state_dict(), config), config)


@pytest.mark.parametrize("layout", ["ldm", "stable-diffusion", "diffusers"])
def test_import_finds_the_layout_and_export_gives_the_file_back(layout, tmp_path, capsys):
    _, own, theirs = small(layout)
    save_file({k: x.contiguous() for k, x in theirs.items()}, tmp_path / "theirs.safetensors")
    sets = [word for field in SMALL for word in ("--set", field)]
    assert main(["import", "kl-tiny", f"{tmp_path}/theirs.safetensors", "--out", f"{tmp_path}/run", *sets]) == 0
    assert f"layout     {layout}\n" in capsys.readouterr().out
    built = zoo.load(str(tmp_path / "run"))
    assert same({k: x.cpu() for k, x in built.state_dict().items()}, own)
    out = tmp_path / "again.safetensors"
    assert main(["export", f"{tmp_path}/run", "--layout", layout, "--out", str(out)]) == 0
    assert same(load_file(out), theirs)


def test_weights_of_another_size_name_their_card(tmp_path, capsys):
    config = attrs.evolve(kl_configs.kl_tiny(), scale=0.5)
    save_file(
        {k: x.contiguous() for k, x in kl_interop.to_diffusers(Kl(config).state_dict(), config).items()},
        tmp_path / "x.safetensors",
    )
    line = fails(capsys, "import", "kl-f8", tmp_path / "x.safetensors", "--out", tmp_path / "run")
    assert "nearest is diffusers" in line
    line = fails(capsys, "import", "kl-tiny", tmp_path / "x.safetensors", "--out", tmp_path / "run")
    assert "--set scale=0.18215" in line


def test_a_folder_has_the_measured_scale_and_comes_back_by_it(tmp_path, capsys):
    run, folder = tmp_path / "run", tmp_path / "folder"
    config = kl_configs.kl_tiny()
    state = Kl(config).state_dict() | {"mean_square": torch.tensor(16.0), "updates": torch.tensor(3)}
    files = kl_interop.to_folder(state, config, 16)
    described = files["config.json"]
    assert described["scaling_factor"] == 0.25
    assert (described["block_out_channels"], described["sample_size"]) == (list(config.net.widths), 16)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(described))
    weights = {k: x.contiguous() for k, x in files["diffusion_pytorch_model.safetensors"].items()}
    save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    line = fails(capsys, "import", "kl-tiny", folder, "--out", run, "--set", "scale=0.18215")
    assert "says scaling_factor = 0.25, and this model has 0.18215; --set scale=0.25" in line
    assert main(["import", "kl-tiny", str(folder), "--out", str(run), "--set", "scale=0.25"]) == 0
    out = tmp_path / "out"
    assert main(["export", str(run), "--layout", "diffusers", "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text()) == described
    assert same(load_file(out / "diffusion_pytorch_model.safetensors"), weights)
    images = torch.rand(2, 3, 16, 16)
    ours = Kl(config)
    ours.load_state_dict(state)
    assert torch.allclose(zoo.load(str(run), device="cpu").encode(images), ours.encode(images), atol=1e-6)


def test_settings_of_another_computation_are_refused():
    config = kl_configs.kl_f8()
    kl_interop.check_description({"_class_name": "AutoencoderKL", "sample_size": 512}, config)  # as SD 1 says it
    for said, message in (
        ({"scaling_factor": 0.13025}, "--set scale=0.13025"),
        ({"norm_num_groups": 16}, r"--set net\.groups=16"),
        ({"shift_factor": 0.1}, "shift_factor = 0.1, and this model has None"),
        ({"act_fn": "gelu"}, "act_fn"),
        ({"use_quant_conv": False}, "use_quant_conv"),
    ):
        with pytest.raises(BadWeights, match=message):
            kl_interop.check_description(said, config)


def test_the_real_package_agrees(tmp_path):
    """Where diffusers is installed: it loads our folder, encodes and decodes alike, and we read what it saves."""
    diffusers = pytest.importorskip("diffusers")
    config = attrs.evolve(kl_configs.kl_tiny(), scale=0.3)
    torch.manual_seed(0)
    ours = Kl(config).double().eval()
    with torch.no_grad():
        for p in ours.parameters():
            p.add_(0.1 * torch.randn_like(p))
    files = kl_interop.to_folder(ours.state_dict(), config, 16)
    (tmp_path / "config.json").write_text(json.dumps(files["config.json"]))
    weights = {k: x.contiguous() for k, x in files["diffusion_pytorch_model.safetensors"].items()}
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float64).eval()
    assert theirs.config.scaling_factor == 0.3
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        mean = theirs.encode(2 * images - 1).latent_dist.mean
        out = theirs.decode(mean).sample
    assert torch.allclose(ours.encode(images), 0.3 * mean, atol=1e-10)
    assert torch.allclose(ours.decode(0.3 * mean), (out.clamp(-1, 1) + 1) / 2, atol=1e-10)
    theirs.save_pretrained(tmp_path / "again")
    kl_interop.check_description(json.loads((tmp_path / "again" / "config.json").read_text()), config)
    saved = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert same(kl_interop.from_diffusers(saved, config), ours.state_dict())
