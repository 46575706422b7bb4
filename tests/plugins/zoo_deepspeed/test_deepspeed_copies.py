"""Copies of the model on 2 x 2 processes: a plain mean between them, reducers, gradient scales, and what is resumed."""

import json
from pathlib import Path

import pytest
from launch import finish, go, start
from runs_fakes import captioned, command, copied, numbers, rows

PROGRAM = str(Path(__file__).with_name("between.py"))
EMA = ("prior.train.ema=0.9",)
LAYOUTS = {
    "zero3": {"zero": 3, "per_node": 2},
    "zero3accumulated": {"zero": 3, "per_node": 2, "accumulate": 2},
    "zero2": {"zero": 2, "per_node": 2, "shard": "machine", "accumulate": 2},
    "zero1": {"zero": 1, "per_node": 2, "shard": "machine"},
    "torch": {"engine": "torch"},
}
"""With a plain mean each is one process, but for rounding."""
LOW = "powersgd:rank=2,dense_steps=2,min_elements=64"
REDUCERS = {
    "low3": {"zero": 3, "per_node": 2, "reducer": LOW},
    "low2": {"zero": 2, "per_node": 1, "reducer": LOW},
    "low0": {"zero": 0, "reducer": LOW},
    "lowtorch": {"engine": "torch", "reducer": LOW},
    "dalle3": {"zero": 3, "per_node": 2, "reducer": "powersgd-dalle:rank=8"},
}
SPOIL = {"rank": 2, "step": 2, "block": 1}
SAVED, STEPS = 4, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """All of them trained in one launch of four processes, and each with a reducer once more from its checkpoint."""
    top = tmp_path_factory.mktemp("copies")
    data = captioned(top / "pictures")
    go(command(data, top / "one", "codebook"))

    def prior(name, **how):
        if "rewind" not in how:
            copied(top / "one", top / name)
        return command(data, top / name, "prior", set=EMA, save_every=SAVED, **how)

    alone = [prior("alone"), prior("alonespoilt", precision="resblock", spoil={**SPOIL, "rank": 0})]
    several = [prior(name, **how) for name, how in (LAYOUTS | REDUCERS).items()]
    for name, how in REDUCERS.items():
        several.append(prior(f"{name}again", **how, resume=True, rewind={"of": str(top / name), "step": SAVED}))
    several.append(prior("spoilt", zero=3, per_node=2, precision="resblock", spoil=SPOIL))
    several.append(prior("spoilttorch", engine="torch", precision="resblock", spoil=SPOIL))
    several.append(command(data, top / "all", None, steps=4, save_every=3, zero=3, per_node=2, reducer=LOW))
    fewer = prior("spoiltalone", precision="resblock", resume=True, rewind={"of": str(top / "spoilt"), "step": SAVED})
    said = []
    for size, commands in ((1, alone), (4, several), (1, [fewer])):
        path = top / "commands.json"
        path.write_text(json.dumps(commands))
        codes, said_now = finish(start(size, [PROGRAM, str(path)]), 400)
        assert codes == [0] * size, "\n".join(said_now)
        said += said_now if size == 4 else []
    return top, said


@pytest.mark.parametrize("name", LAYOUTS)
def test_with_a_plain_mean_losses_are_those_of_one_process(place, name):
    top, _ = place
    for number in ("loss", "grad_norm"):
        assert numbers(top / name, "prior", number) == pytest.approx(numbers(top / "alone", "prior", number), rel=1e-5)


@pytest.mark.parametrize("name", [*LAYOUTS, *REDUCERS, "spoilt"])
def test_replicas_end_equal_to_the_bit(place, name):
    _, said = place
    ends = [line for text in said for line in text.splitlines() if line.startswith(f"replica {name} ")]
    assert len(ends) == 4
    assert len(set(ends)) == 1


@pytest.mark.parametrize("name", REDUCERS)
def test_a_reducer_sends_less_and_learns_alike(place, name):
    top, _ = place
    dense = numbers(top / ("zero3" if name.endswith("3") else "torch"), "prior", "sent")
    sent = numbers(top / name, "prior", "sent")
    start_up = 2 if name.startswith("low") else 0
    assert sent[:start_up] == dense[:start_up]
    assert max(sent[start_up:]) < 0.5 * dense[0]
    assert numbers(top / name, "prior") == pytest.approx(numbers(top / "alone", "prior"), rel=5e-3)
    assert numbers(top / name, "prior")[-1] != numbers(top / "alone", "prior")[-1]


def test_plain_data_parallel_training_is_the_same_under_either_engine_and_at_any_stage(place):
    top, _ = place
    for name in ("low0", "low2"):
        assert numbers(top / name, "prior") == pytest.approx(numbers(top / "lowtorch", "prior"), rel=1e-5)


@pytest.mark.parametrize("name", REDUCERS)
def test_resumed_with_its_error_feedback_it_is_bit_for_bit_the_same(place, name):
    top, said = place
    assert numbers(top / f"{name}again", "prior") == numbers(top / name, "prior")
    assert numbers(top / f"{name}again", "prior", "sent") == numbers(top / name, "prior", "sent")
    text = "\n".join(said)
    ends = {run: text.partition(f"replica {run} ")[2][:64] for run in (name, f"{name}again")}
    assert len(set(ends.values())) == 1


def test_every_part_of_one_command_has_a_reducer_of_its_own(place):
    top, _ = place
    for part in ("codebook", "prior", "reranker"):
        sent = numbers(top / "all", part, "sent")
        assert sent[0] == sent[1] > sent[2] == sent[3], part  # two dense updates each
        assert (top / "all" / f"{part}.safetensors").is_file()


def scales(folder, step):
    return {k: x for k, x in rows(folder, "prior")[step].items() if k.startswith("scale/")}


@pytest.mark.parametrize(("name", "workers"), [("alonespoilt", 0), ("spoilt", 2), ("spoilttorch", 2)])
def test_an_overflow_on_one_rank_divides_one_scale_and_skips_the_update_on_all(place, name, workers):
    top, _ = place
    before, after = (scales(top / name, SPOIL["step"] - 1 + i) for i in (0, 1))
    assert [row["skipped"] for row in rows(top / name, "prior")] == [float(i == SPOIL["step"]) for i in range(STEPS)]
    block = list(before)[SPOIL["block"]]
    assert {k: round(after[k] - x, 6) for k, x in before.items()} == {k: -0.5 * (k == block) for k in before}
    assert before[block] == pytest.approx(13 + workers + 0.002)  # log2 of M, and two clean updates
    assert numbers(top / name, "prior") == pytest.approx(numbers(top / "alonespoilt", "prior"), rel=2e-3)


def test_resumed_by_another_number_of_workers_scales_keep_their_share(place):
    top, _ = place
    four, one = (scales(top / name, SAVED) for name in ("spoilt", "spoiltalone"))
    assert {k: x + 2 for k, x in one.items()} == pytest.approx(four)
    assert numbers(top / "spoiltalone", "prior") == pytest.approx(numbers(top / "spoilt", "prior"), rel=2e-3)
