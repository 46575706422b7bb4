"""A cascade: what each stage is trained and drawn on, and what a user's own pictures do."""

from __future__ import annotations

import attrs
import pytest
import torch
from cascade_fakes import Copier, system

import zoo
from zoo.diffusion.config import Diffusing
from zoo.errors import ConfigError, NotReady, PartMismatch
from zoo.generators.enlarging import changed, cropped
from zoo.generators.given import Given
from zoo.interfaces import Cond
from zoo.nn.resize import larger, smaller
from zoo.rng import Rng
from zoo.testing.kit import ROWS, Pictures


def pictures(rows: int = ROWS) -> torch.Tensor:
    images = Pictures(32).read(range(rows)).images
    assert images is not None
    return images


def test_stages_are_in_order_and_learn_what_they_should():
    g = system("text")
    assert g.stages == {"base": ("tokenizer", "text_encoder", "base"), "sr32": ("tokenizer", "sr32")}
    assert g.reads("base") == ("tokenizer", "latent")
    assert g.reads("sr32") == ("tokenizer", "text_encoder", "latent")
    frozen = system("text", "train_text=false")
    assert frozen.stages["base"] == ("tokenizer", "base")
    assert frozen.reads("base") == ("tokenizer", "text_encoder", "latent")


def test_each_stage_makes_its_own_size_and_the_last_is_returned():
    g = system()
    found = g.stage_pictures([None, None], seed=0)
    assert {role: list(x.shape) for role, x in found.items()} == {"base": [2, 3, 16, 16], "sr32": [2, 3, 32, 32]}
    torch.testing.assert_close(g.generate([None, None], seed=0), found["sr32"])


def test_the_stage_above_sees_the_picture_below_noised_at_the_level_of_its_settings():
    g = system(**{})
    g.generate([None], seed=0, sampling={"sr32.level": 0.3})
    cond = g.parts["sr32"].asked[0]["cond"]
    assert cond.low.shape == (1, 3, 32, 32)
    torch.testing.assert_close(cond.low_level, g.parts["sr32"].schedule.logsnr(torch.tensor([0.3])))
    sigma = torch.sigmoid(-cond.low_level).sqrt().item()
    assert cond.low.std().item() == pytest.approx(sigma, rel=0.05)  # the picture below is grey: 0 in [-1, 1]
    g.generate([None], seed=0, sampling={"sr32.level": 0.0})
    assert g.parts["sr32"].asked[-1]["cond"].low.abs().max() < 0.06


def test_training_the_stage_above_gives_it_enlarged_pictures_at_levels_of_its_own():
    g = system()
    images, rng = pictures(), Rng(0, range(ROWS), step=3)
    batch = g.encode("sr32", attrs.evolve(Pictures(32).read(range(ROWS)), images=images))
    assert batch.z is None  # the stage needs the picture itself, so no store takes its place
    g.loss("sr32", batch, step=3, rng=rng)
    asked = g.parts["sr32"].asked[-1]
    torch.testing.assert_close(asked["z"], 2 * images - 1)
    level = rng.fork("level").uniform()
    logsnr = g.parts["sr32"].schedule.logsnr(level)
    torch.testing.assert_close(asked["cond"].low_level, logsnr)
    clean = 2 * larger(smaller(images, 16), 32) - 1
    alpha, sigma = torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()
    noise = rng.fork("low").normal(3, 32, 32)
    wanted = alpha[:, None, None, None] * clean + sigma[:, None, None, None] * noise
    torch.testing.assert_close(asked["cond"].low, wanted)


def test_the_base_learns_on_small_pictures_which_a_store_may_hold():
    g = system()
    batch = g.encode("base", Pictures(32).read(range(ROWS)), rng=Rng(1, range(ROWS)))
    torch.testing.assert_close(batch.z, 2 * smaller(pictures(), 16) - 1)
    assert torch.equal(batch.z, g.encode("base", Pictures(32).read(range(ROWS)), rng=Rng(2, range(ROWS))).z)


def test_crops_cut_picture_and_condition_alike():
    z = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    small, cond = cropped(z, Cond(low=z + 0.5), 4, Rng(0, range(2)))
    assert small.shape == (2, 3, 4, 4)
    torch.testing.assert_close(cond.low, small + 0.5)
    places = {tuple(cropped(z, Cond(), 4, Rng(0, range(2), step=step))[0][:, 0, 0, 0].tolist()) for step in range(20)}
    assert len(places) > 5
    for side in (None, 8, 16):
        assert cropped(z, Cond(), side, Rng(0, range(2)))[0] is z
    g = system(sr32=Copier(crop=8))
    batch = g.encode("sr32", Pictures(32).read(range(ROWS)))
    g.loss("sr32", batch, step=0, rng=Rng(0, range(ROWS)))
    assert g.parts["sr32"].asked[-1]["cond"].low.shape == (ROWS, 3, 8, 8)


def test_text_is_embedded_once_and_learns_only_in_its_own_stage():
    g = system("text")
    read = Pictures(32).read(range(ROWS))
    base, above = g.encode("base", read), g.encode("sr32", read)
    assert base.text is None
    assert base.ids is not None
    assert above.text is not None
    assert not above.text.requires_grad
    calls = []
    encode = g.text_encoder.encode
    g.text_encoder.encode = lambda ids, mask: calls.append(len(ids)) or encode(ids, mask)
    g.generate(list(read.texts[:2]), images_per_prompt=3, chunk=2)
    assert calls == [2]


def test_changes_to_sampling_reach_all_stages_or_one():
    own = {"base": Diffusing(steps=7), "sr32": Diffusing(steps=9)}
    found = changed(own, ["base.steps=5", "steps=4", "sampler=ddim"])
    assert [(x.steps, x.sampler) for x in found.values()] == [(5, "ddim"), (4, "ddim")]
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        changed(own, {"step": 4})
    with pytest.raises(ConfigError, match=r"bas\.steps.*did you mean 'base'"):
        changed(own, {"bas.steps": 4})
    with pytest.raises(ConfigError, match="'steps' is 2"):
        changed(own, {"sampler": "dpm++", "steps": 2})
    with pytest.raises(ConfigError, match="steps: expected an integer"):
        changed(own, ["steps=many"])


def test_a_picture_may_be_enlarged_completed_or_varied():
    g = system()
    low = smaller(pictures(1), 16)
    out = g.generate([None], given=Given(low=low), sampling={"sr32.level": 0.0})
    torch.testing.assert_close(out, larger(low, 32).clamp(0, 1), atol=0.03, rtol=0)
    assert not g.parts["base"].asked
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16, :] = 1
    out = g.generate([None], given=Given(images=pictures(1), mask=mask))
    torch.testing.assert_close(out[..., :16, :], pictures(1)[..., :16, :])
    assert (out[..., 16:, :] - pictures(1)[..., 16:, :]).abs().mean() > 0.05
    g.parts["base"].asked.clear()
    g.generate([None], given=Given(images=pictures(1), strength=0.5), sampling={"steps": 8})
    first = g.parts["base"].asked[0]
    torch.testing.assert_close(first["logsnr"], g.parts["base"].schedule.logsnr(torch.tensor([0.5])))
    with pytest.raises(ConfigError, match=r"no stage enlarges a picture of 20 px; give one of 16 px \(sr32\)"):
        g.generate([None], given=Given(low=torch.zeros(1, 3, 20, 20)))


def test_stages_that_do_not_chain_are_refused():
    with pytest.raises(ConfigError, match=r"sr32.*each stage must enlarge"):
        zoo.resolve("imagen-tiny", ["base_size=32"])
    with pytest.raises(ConfigError, match="the last stage, sr32, makes 32 px; set image_size=32"):
        zoo.resolve("imagen-tiny", ["image_size=64"])
    config = zoo.resolve("imagen-tiny", ["sr64=imagen-sr-tiny", "image_size=64"])
    assert (config.sr64.low, config.sr64.size, config.sr32.low, config.base.low) == (32, (64, 64), 16, None)
    with pytest.raises(PartMismatch, match=r"sr32\.low is set to 8.*leave sr32.low open"):
        zoo.resolve("imagen-tiny", ["sr32.low=8"])


def test_stages_that_read_different_prompts_are_refused():
    with pytest.raises(PartMismatch, match="base reads label, sr32 reads text"):
        system(base=Copier("label"), sr32=Copier("text"))
    system(sr32=Copier("text"))  # one may read nothing
    with pytest.raises(PartMismatch, match="set tokenizer=bpe-shapes text_encoder=t5"):
        zoo.build("imagen-tiny", overrides=["text_encoder=none", "train_text=false"], device="meta")


def test_guidance_needs_a_null_condition():
    g = system()
    for part in (g.parts["base"], g.parts["sr32"]):
        part.config = attrs.evolve(part.config, cond_drop=0.0)
    with pytest.raises(ConfigError, match="cond_drop"):
        g.generate([None], guidance=3.0)


def test_a_stage_that_reads_nothing_stands_beside_one_that_reads():
    g = system(sr32=Copier("text"))
    assert (g.asks, g.stages["base"]) == ("caption", ("base",))
    assert g.stages["sr32"] == ("tokenizer", "sr32")
    g.generate(["a red circle"], seed=0)
    assert g.parts["sr32"].asked[0]["cond"].text is not None
    assert g.config.together() == {}  # nobody would teach the text encoder anything


def test_what_is_given_must_make_sense():
    x = torch.zeros(2, 3, 32, 32)
    for wrong, said in (
        ({"images": x}, "need a strength"),
        ({"mask": x[:, :1], "low": x}, "there are none"),
        ({}, "one of them"),
        ({"images": x, "strength": 0.5, "low": x}, "one of them"),
    ):
        with pytest.raises(ConfigError, match=said):
            Given(**wrong)
    g = system()
    with pytest.raises(ConfigError, match="images has 2 rows for 3 prompts"):
        g.generate([None] * 3, given=Given(images=x, strength=0.5))


def test_stages_are_shown_of_one_picture_for_all_prompts_and_whatever_the_chunk():
    g = system()
    given = Given(images=pictures(1), strength=0.5)
    one, two = (g.stage_pictures([None] * 3, given=given, chunk=chunk) for chunk in (1, 3))
    assert one["base"].shape == (3, 3, 16, 16)
    for role in one:
        torch.testing.assert_close(one[role], two[role])


def test_a_stage_is_judged_on_whole_pictures():
    g = system(sr32=Copier(crop=8)).eval()
    g.loss("sr32", g.encode("sr32", Pictures(32).read(range(ROWS))), step=0, rng=Rng(0, range(ROWS)))
    assert g.parts["sr32"].asked[-1]["z"].shape == (ROWS, 3, 32, 32)


def test_enlarging_needs_only_the_stages_that_do_it():
    g = zoo.build("imagen-tiny", parts={"base": Copier(), "sr32": Copier()})
    g._ready["base"] = False
    g.generate([None], given=Given(low=smaller(pictures(1), 16)))
    with pytest.raises(NotReady, match="base"):
        g.generate([None])
