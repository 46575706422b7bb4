"""A folder of transformers' becomes a run, and what a run exports is read by transformers."""

import json

import pytest
import torch

import zoo
from zoo.cli import main

transformers = pytest.importorskip("transformers")


def test_a_folder_of_transformers_comes_and_goes(tmp_path, capsys):
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=sizes | ids | {"vocab_size": 384, "max_position_embeddings": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    theirs = transformers.CLIPModel(config)
    theirs.save_pretrained(tmp_path / "hf")
    assert main(["import", "clip-tiny", str(tmp_path / "hf"), "--out", str(tmp_path / "x"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["layout"], facts["ignored"]) == ("huggingface", ["config.json"])
    pixels = torch.rand(2, 3, 32, 32)
    model = zoo.load(str(tmp_path / "x"))
    normal = (pixels - pixels.new_tensor(model.config.mean).view(3, 1, 1)) / pixels.new_tensor(model.config.std).view(
        3, 1, 1
    )
    with torch.no_grad():
        found = model.image_features(pixels)
        expected = theirs.get_image_features(normal)
    expected = getattr(expected, "pooler_output", expected)
    assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)

    file = tmp_path / "hf" / "model.safetensors"
    file.unlink()
    assert main(["export", str(tmp_path / "x"), "--layout", "huggingface", "--out", str(file)]) == 0
    again = transformers.CLIPModel.from_pretrained(tmp_path / "hf").state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[key], x) for key, x in theirs.state_dict().items())
