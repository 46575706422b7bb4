"""ImageGPT against transformers', through real folders, and the authors' variables; both ways, and bad files."""

import json
import re

import attrs
import numpy as np
import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.cli import main
from zoo.errors import BadWeights, ConfigError
from zoo.interfaces import Cond
from zoo.resolution import resolve_tree
from zoo.weights import load_tensors
from zoo_imagegpt import interop
from zoo_imagegpt.model import ImageGptPrior

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
TINY = ["prior.depth=3", "image_size=4"]
"""Overrides of `imagegpt-tiny`: 16 positions."""
SETS = [word for field in TINY for word in ("--set", field)]
DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def config():
    """Return the prior's config of `imagegpt-tiny` with TINY."""
    _, system = resolve_tree("imagegpt-tiny", TINY)
    return system.prior.config


def peer(dtype=torch.float32, **more):
    """Return transformers' model of that config, every weight random; its biases stay zero, as in published files."""
    c = config()
    sizes = {"vocab_size": c.vocab_size + 1, "n_positions": c.length, "n_embd": c.width, "n_layer": c.depth}
    sizes |= {"n_head": c.heads, **DROPOUTS, **more}
    model = transformers.ImageGPTForCausalImageModeling(transformers.ImageGPTConfig(**sizes)).to(dtype).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.endswith(".bias"):
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def theirs(model, codes):
    """Return transformers' logits of every code, its start token before them."""
    sos = torch.full((len(codes), 1), model.config.vocab_size - 1)
    with torch.no_grad():
        return model(torch.cat((sos, codes[:, :-1]), 1)).logits


def some_codes(rows=3):
    c = config()
    return torch.randint(c.vocab_size, (rows, c.length), generator=torch.Generator().manual_seed(1))


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys, *arguments):
    """Run a command that ends with one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def colours(count=16):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture
def folder(tmp_path):
    """Return a folder as published: weights, config, and clusters."""
    place = tmp_path / "published"
    peer().save_pretrained(place)
    (place / "preprocessor_config.json").write_text(json.dumps({"clusters": colours().tolist(), "image_mean": [0.5]}))
    return place


def test_a_published_folder_is_a_whole_system_and_leaves_as_one(folder, tmp_path, capsys):
    said = run(capsys, "import", "imagegpt-tiny", folder, "--out", tmp_path / "run", *SETS)
    assert "transformers" in said
    assert "not ready" not in said
    system = zoo.load(tmp_path / "run")
    assert all(system.ready.values())
    codes = some_codes()
    expected = theirs(peer(), codes)
    with torch.no_grad():
        assert (system.prior.eval().logits(codes, Cond()) - expected).abs().max() < 1e-5
    assert torch.equal(system.codebook.colours, colours())
    assert system.generate([None], images_per_prompt=2).shape == (2, 3, 4, 4)

    run(capsys, "export", tmp_path / "run", "--layout", "transformers", "--out", tmp_path / "back")
    again = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(theirs(again, codes), expected)
    kept = load_tensors(folder / "model.safetensors")[0]
    assert all(torch.equal(x, kept[key]) for key, x in load_tensors(tmp_path / "back" / "model.safetensors")[0].items())
    assert again.config.attn_pdrop == again.config.resid_pdrop == again.config.embd_pdrop == 0
    clusters = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["clusters"]
    assert torch.equal(torch.tensor(clusters), colours())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("n_head", 4, "n_head = 4.* 2; --set prior.heads=4"), ("activation_function", "gelu", "quick_gelu"),
     ("layer_norm_epsilon", 1e-2, "0.01.* 1e-05"), ("scale_attn_by_inverse_layer_idx", True, "True.* False")],
)  # fmt: skip
def test_what_no_shape_shows_is_read_from_the_description(field, value, said, tmp_path, capsys):
    peer(**{field: value}).save_pretrained(tmp_path / "other")
    capsys.readouterr()  # its progress bar
    line = fails(capsys, "import", "imagegpt-tiny", tmp_path / "other", "--out", tmp_path / "run", *SETS)
    assert re.search(f"config.json: says .*{said}", line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_ours_in_their_code_has_our_logits(build, tmp_path, dtype, most):
    model = build(dtype)
    files = interop.to_folder(model.state_dict(), model.config, 4)
    (tmp_path / "config.json").write_text(json.dumps(files["config.json"]))
    zoo.weights.save_tensors(tmp_path / "model.safetensors", files["model.safetensors"])
    other = transformers.ImageGPTForCausalImageModeling.from_pretrained(tmp_path, dtype=dtype).eval()
    codes = some_codes()
    with torch.no_grad():
        own = model.logits(codes, Cond())
    assert own.abs().max() > 1
    assert (own - theirs(other, codes)).abs().max() < most
    with torch.no_grad():
        start = torch.cat((torch.full((3, 1), 16), codes[:, :-1]), 1)
        hidden = other.transformer(start, output_hidden_states=True).hidden_states
        norms = [block.ln_1 for block in other.transformer.h]
        means = [norm(h).mean(1) for norm, h in zip(norms, hidden, strict=False)] + [hidden[-1].mean(1)]
        for a, b in zip(model.features(codes, Cond()), means, strict=True):
            assert (a - b).abs().max() < most


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_their_loss_is_ours(build, dtype):
    model, codes = peer(dtype), some_codes()
    own = ImageGptPrior(config()).to(dtype).eval()
    own.load_state_dict(interop.from_transformers(model.state_dict(), config()))
    with torch.no_grad():
        nats = F.cross_entropy(theirs(model, codes).flatten(0, 1), codes.flatten())
        loss = own.loss(zoo.interfaces.Batch(codes=codes), Cond(), step=0, rng=zoo.rng.Rng(0, range(3)))["loss"]
    assert float(loss) == pytest.approx(float(nats), abs=1e-6)


def test_old_files_with_masks_are_read(folder, tmp_path, capsys):
    state = load_tensors(folder / "model.safetensors")[0]
    for i in range(3):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    said = run(capsys, "import", "imagegpt-tiny", folder, "--out", tmp_path / "run", *SETS)
    assert "6 tensors of the file" in said
    with torch.no_grad():
        logits = zoo.load(tmp_path / "run").prior.eval().logits(some_codes(), Cond())
    assert (logits - theirs(peer(), some_codes())).abs().max() < 1e-5


def test_a_bias_that_is_not_zero_is_refused_by_name(folder, tmp_path, capsys):
    state = load_tensors(folder / "model.safetensors")[0]
    state["transformer.h.1.mlp.c_fc.bias"][3] = 0.5
    zoo.weights.save_tensors(folder / "model.safetensors", state)
    line = fails(capsys, "import", "imagegpt-tiny", folder, "--out", tmp_path / "run", *SETS)
    assert "'transformer.h.1.mlp.c_fc.bias' is not zero" in line
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_size_is_one_line_with_key_and_shapes(tmp_path, capsys):
    wide = peer(n_embd=48).state_dict()
    torch.save(wide, tmp_path / "wide.bin")
    line = fails(capsys, "import", "imagegpt-tiny", tmp_path / "wide.bin", "--out", tmp_path / "run", *SETS)
    assert "'transformer.wte.weight' has shape [17, 48], the model's is [17, 32]" in line
    torch.save(peer(n_positions=64).state_dict(), tmp_path / "long.bin")
    line = fails(capsys, "import", "imagegpt-tiny", tmp_path / "long.bin", "--out", tmp_path / "run", *SETS)
    assert "'transformer.wpe.weight' has shape [64, 32], the model's is [16, 32]" in line
    torch.save(peer(n_layer=2).state_dict(), tmp_path / "short.bin")
    line = fails(capsys, "import", "imagegpt-tiny", tmp_path / "short.bin", "--out", tmp_path / "run", *SETS)
    assert "lack 'transformer.h.2." in line


def test_clusters_of_another_shape_are_one_line(folder, tmp_path, capsys):
    for table, words in [
        (colours(15).tolist(), "has shape [16, 3], this one [15, 3]"),
        ([[0.0, 1.0]], "this one [1, 2]"),
        ([[0.0], [1.0, 2.0]], "holds no table of numbers"),
        (None, "has no 'clusters'"),
    ]:
        (folder / "preprocessor_config.json").write_text(json.dumps({"clusters": table}))
        line = fails(capsys, "import", "imagegpt-tiny", folder, "--out", tmp_path / "run", *SETS)
        assert words in line
        assert not (tmp_path / "run").exists()


def test_weights_alone_leave_the_palette_to_fit(tmp_path, capsys):
    torch.save(peer().state_dict(), tmp_path / "weights.bin")
    said = run(capsys, "import", "imagegpt-tiny", tmp_path / "weights.bin", "--out", tmp_path / "run", *SETS)
    assert "codebook" in said
    assert zoo.load(tmp_path / "run").ready == {"codebook": False, "prior": True}
    np.save(tmp_path / "kmeans_centers.npy", colours().numpy())
    run(capsys, "import", "imagegpt-tiny", tmp_path / "kmeans_centers.npy", "--part", "codebook",
        "--out", tmp_path / "run", *SETS)  # fmt: skip
    assert all(zoo.load(tmp_path / "run").ready.values())


@pytest.mark.parametrize("kind", ["npy", "json"])
def test_a_palette_alone_is_read(tmp_path, capsys, kind):
    table = colours(16).double()
    file = tmp_path / f"clusters.{kind}"
    if kind == "npy":
        np.save(file, table.numpy())
    else:
        file.write_text(json.dumps({"clusters": table.tolist()}))
    run(capsys, "import", "palette-tiny", file, "--out", tmp_path / "run")
    assert torch.equal(zoo.load(tmp_path / "run").colours, table.float())
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object))
    assert "allow_pickle" in fails(capsys, "import", "palette-tiny", tmp_path / "objects.npy", "--out", tmp_path / "x")


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_the_authors_variables_come_and_go(build, tmp_path, capsys, objective):
    model = build(objective=objective)
    variables = {key: x.numpy() for key, x in interop.to_openai(model.state_dict(), model.config).items()}
    assert variables["model/h0/attn/q_proj"].shape == (2, 16, 32)  # [heads, width / heads, width]
    variables |= {"model/wte/adam_m": np.zeros(3), "global_step": np.array(7), "model/wclf": np.zeros((32, 10))}
    np.savez(tmp_path / "model.npz", **variables)
    np.save(tmp_path / "kmeans_centers.npy", colours().numpy())
    sets = [*SETS, "--set", f"prior.objective={objective}"]
    said = run(capsys, "import", "imagegpt-tiny", tmp_path, "--out", tmp_path / "run", *sets)
    assert "openai" in said
    system = zoo.load(tmp_path / "run")
    assert all(torch.equal(x, model.state_dict()[key]) for key, x in system.prior.state_dict().items())
    assert all(system.ready.values())


def test_per_head_products_are_the_slices_of_one_matrix(build):
    """The authors' einsum over [head, width / head, width] against our matrix."""
    model = build(torch.float64)
    variables = interop.to_openai(model.state_dict(), model.config)
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    qkv = F.linear(x, model.state_dict()["blocks.1.attention.branch.qkv.weight"]).unflatten(2, (3, 2, 16))
    for i, name in enumerate("qkv"):
        heads = torch.einsum("bld,hed->blhe", x, variables[f"model/h1/attn/{name}_proj"])
        assert torch.allclose(qkv[:, :, i], heads, atol=1e-12)
    heads = torch.randn(2, 5, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = F.linear(heads.flatten(2), model.state_dict()["blocks.1.attention.branch.out.weight"])
    authors = torch.einsum("blhe,hed->bld", heads, variables["model/h1/attn/c_proj"])
    assert torch.allclose(out, authors, atol=1e-12)


def test_both_layouts_are_one_function(build):
    model = build()
    way = interop.from_transformers(interop.to_transformers(model.state_dict(), model.config), model.config)
    other = interop.from_openai(interop.to_openai(model.state_dict(), model.config), model.config)
    for key, x in model.state_dict().items():
        assert torch.equal(x, way[key])
        assert torch.equal(x, other[key])


def test_what_their_code_has_not_is_refused(build):
    masked = build(objective="bert")
    with pytest.raises(ConfigError, match="is causal"):
        interop.to_transformers(masked.state_dict(), masked.config)
    labelled = build(reads="label", classes=3)
    for write in (interop.to_transformers, interop.to_openai):
        with pytest.raises(ConfigError, match="one start vector"):
            write(labelled.state_dict(), labelled.config)
    snake = attrs.evolve(zoo.resolve("palette-tiny"), order="snake")
    with pytest.raises(ConfigError, match="raster order"):
        zoo_imagegpt_clusters().to_folder({"colours": colours()}, snake, 4)
    model = build()
    with pytest.raises(BadWeights, match="unexpected 'extra'"):
        interop.to_openai({**model.state_dict(), "extra": torch.zeros(1)}, model.config)


def zoo_imagegpt_clusters():
    from zoo_imagegpt import clusters

    return clusters


def test_a_picture_has_the_codes_of_their_processor(folder, tmp_path, capsys):
    run(capsys, "import", "palette-tiny", folder / "preprocessor_config.json", "--out", tmp_path / "run")
    palette = zoo.load(tmp_path / "run")
    pixels = torch.randint(256, (4, 4, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normed = pixels.numpy() / 127.5 - 1
    distance = ((normed[..., None, :] - colours().numpy()) ** 2).sum(-1)  # image_processing_imagegpt.py
    codes = palette.encode(pixels.movedim(-1, 0)[None] / 255)
    assert codes.view(4, 4).tolist() == distance.argmin(-1).tolist()
