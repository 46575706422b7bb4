"""One process = two processes = ZeRO 0, 1, 2, 3: losses, gradient norms and finished parts of every stage."""

import pytest
import torch
from launch import go, run_all
from runs_fakes import captioned, command, copied, numbers, rows, weights

EMA = ("prior.train.ema=0.9",)
HALF = (("bf16", 0), ("bf16", 3), ("resblock", 2), ("resblock", 3))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Every part trained by the core's own engine, and by DeepSpeed in one launch of two processes."""
    top = tmp_path_factory.mktemp("stages")
    data = captioned(top / "pictures")
    for part in ("codebook", "reranker"):
        go(command(data, top / "one", part))
    go(command(data, copied(top / "one", top / "prior"), "prior", set=EMA, sample_every=8))
    for precision in ("bf16", "resblock"):
        go(command(data, copied(top / "one", top / precision), "prior", precision=precision))
    several = []
    for zero in range(4):
        out = top / f"zero{zero}"
        several += [command(data, out, part, zero=zero) for part in ("codebook", "reranker")]
        out = copied(top / "one", top / f"prior{zero}")
        several.append(
            command(data, out, "prior", zero=zero, accumulate=2, set=EMA, sample_every=8, recompute=zero > 1)
        )
    for precision, zero in HALF:
        out = copied(top / "one", top / f"{precision}{zero}")
        several.append(command(data, out, "prior", zero=zero, precision=precision))
    run_all(top, 2, several)
    return top


def same(one, two, part, name="loss", rel=1e-5):
    assert numbers(one, part, name) == pytest.approx(numbers(two, part, name), rel=rel)
    assert len(numbers(one, part)) == 8


@pytest.mark.parametrize("zero", range(4))
@pytest.mark.parametrize("part", ["codebook", "reranker"])
def test_losses_are_those_of_one_process(place, zero, part):
    same(place / "one", place / f"zero{zero}", part)
    same(place / "one", place / f"zero{zero}", part, "grad_norm")


@pytest.mark.parametrize("zero", range(4))
def test_a_prior_with_captions_of_very_different_lengths_may_be_accumulated(place, zero):
    for name in ("loss", "text", "image", "grad_norm"):
        same(place / "prior", place / f"prior{zero}", "prior", name)


@pytest.mark.parametrize("zero", range(4))
def test_finished_parts_are_those_of_one_process(place, zero):
    for role, one, two in (
        ("codebook", "one", "zero"), ("reranker", "one", "zero"), ("prior", "prior", "prior"),
    ):  # fmt: skip
        expected, found = weights(place / one, role), weights(place / f"{two}{zero}", role)
        assert {k: x.shape for k, x in expected.items()} == {k: x.shape for k, x in found.items()}
        # Where a gradient is zero but for rounding, Adam walks at random: one tensor says little, all do.
        apart = sum((found[name].double() - x.double()).square().sum() for name, x in expected.items())
        assert apart.sqrt() < 1e-3 * sum(x.double().square().sum() for x in expected.values()).sqrt()


@pytest.mark.parametrize("zero", range(4))
def test_frozen_parts_and_fitted_ones_are_untouched(place, zero):
    assert (place / f"prior{zero}" / "codebook.safetensors").read_bytes() == (
        place / "one" / "codebook.safetensors"
    ).read_bytes()
    for role in ("tokenizer", "reranker.tokenizer"):
        folder = "prior" if role == "tokenizer" else "one"
        other = f"prior{zero}" if role == "tokenizer" else f"zero{zero}"
        assert torch.equal(weights(place / folder, role)["proto"], weights(place / other, role)["proto"])


@pytest.mark.parametrize("zero", range(4))
def test_samples_are_drawn_from_the_average(place, zero):
    name = "samples/prior-00000008.png"
    assert (place / f"prior{zero}" / name).read_bytes() == (place / "prior" / name).read_bytes()


@pytest.mark.parametrize(("precision", "zero"), HALF)
def test_half_precision_trains_as_in_one_process(place, precision, zero):
    assert numbers(place / precision, "prior") != numbers(place / "prior", "prior")
    same(place / precision, place / f"{precision}{zero}", "prior", rel=2e-3)
    scales = [
        {k: x for k, x in row.items() if k.startswith("scale/")} for row in rows(place / f"{precision}{zero}", "prior")
    ]
    one = [{k: x for k, x in row.items() if k.startswith("scale/")} for row in rows(place / precision, "prior")]
    for mine, theirs in zip(scales, one, strict=True):
        assert {k: x - 1 for k, x in mine.items()} == pytest.approx(theirs)  # two workers: log2 is one more


def test_one_row_a_step_is_written_by_all_processes_together(place):
    for folder in place.glob("prior[0-3]"):
        assert [row["step"] for row in rows(folder, "prior")] == list(range(1, 9))
        assert not list(folder.rglob(".*"))
