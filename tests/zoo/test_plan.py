"""The planner against the papers' numbers, the catalogue, and its own arithmetic done by hand."""

import json
import math
import subprocess
import sys

import attrs
import pytest

import zoo
from zoo import registry
from zoo.catalogue import catalogue
from zoo.commands.plan import lines
from zoo.errors import ConfigError, PluginFailed, UnknownName
from zoo.planning.buckets import DEFAULT, Buckets
from zoo.planning.devices import DEVICES, GIB, device_of
from zoo.planning.jobs import job_of
from zoo.planning.memory import memory
from zoo.planning.plan import plan
from zoo.planning.stages import cost_of
from zoo.planning.traffic import shards_of
from zoo.resolution import resolve_tree

PAPER = {"dalle-12b": (3968, 896, 0.8589), "dalle-5.6b": (2688, 640, 0.8512), "dalle-2.8b": (1920, 512, 0.8333)}
"""Width, rank and compression of arXiv:2102.12092, table 1."""
CLUSTER = {"devices": 1024, "per_node": 8, "device": "v100-16gb"}


def matrices(cost):
    return sum(w.numel for w in cost.weights if cost.is_matrix(w))


CARDS = catalogue().cards
UNTRAINED = [name for name, card in CARDS.items() if not card.params or name == "vqvae-latent"]


@pytest.mark.parametrize("name", sorted(CARDS.keys() - set(UNTRAINED)))
def test_planned_parameters_are_those_of_the_card(name):
    assert plan(name, batch=1).params == CARDS[name].params


@pytest.mark.parametrize("name", UNTRAINED)
def test_what_is_not_trained_has_no_plan(name):
    with pytest.raises(ConfigError, match="not trained by gradient"):
        plan(name)


@pytest.mark.parametrize(("name", "count"), [
    ("dalle-12b", 12_092_178_432), ("dalle-5.6b", 5_549_064_192), ("dalle-2.8b", 2_831_155_200),
])  # fmt: skip
def test_matrices_of_the_paper(name, count):
    cost = plan(name).stage.cost
    assert matrices(cost) == count
    assert all(w.block for w in cost.weights if cost.is_matrix(w))
    assert not any(cost.is_matrix(w) for w in cost.weights if "token" in w.name or "head" in w.name)


@pytest.mark.parametrize(("name", "facts"), PAPER.items())
def test_ranks_and_compression_of_the_paper(name, facts):
    width, rank, saved = facts
    made = plan(name, reducer="powersgd-dalle", **CLUSTER)
    assert made.rank == rank
    assert made.json()["saved"] == pytest.approx(saved, abs=5e-5)
    assert made.json()["saved"] == pytest.approx(1 - 5 * rank / (8 * width), abs=1e-6)


def test_all_gradients_of_the_paper():
    made = plan("dalle-12b", reducer="powersgd-dalle", **CLUSTER).json()
    dense = (2 * 12_092_178_432 + 4 * (12_292_836_992 - 12_092_178_432)) / 8
    assert made["traffic"]["between"]["dense"] == pytest.approx(dense, rel=1e-6)
    assert made["saved_total"] == pytest.approx(0.83, abs=0.005)
    assert made["saved_total"] == pytest.approx(1 - made["traffic"]["between"]["sent"] / dense, rel=1e-6)


def test_the_papers_storage_fits_where_deepspeeds_does_not():
    paper = plan("dalle-12b", storage="paper", reducer="powersgd-dalle", **CLUSTER)
    assert paper.job.micro == 1
    assert paper.job.group == 8
    assert paper.fits
    assert paper.memory.total < 16e9
    assert (paper.smallest.machines, paper.smallest.shard) == (1, "machine")
    other = plan("dalle-12b", storage="deepspeed", **CLUSTER)
    assert not other.fits
    held = other.memory.parameters + other.memory.master + other.memory.moments
    assert held / GIB == pytest.approx(20.0, abs=0.1)  # 2 + 4 + 8 bytes, of an eighth of the parameters
    assert other.smallest.machines > 1
    wider = plan("dalle-12b", storage="deepspeed", shard="all", batch=8 * other.smallest.machines,
                 device="v100-16gb", devices=8 * other.smallest.machines)  # fmt: skip
    assert wider.fits
    narrower = plan("dalle-12b", storage="deepspeed", shard="all", batch=8 * (other.smallest.machines - 1),
                    device="v100-16gb", devices=8 * (other.smallest.machines - 1))  # fmt: skip
    assert not narrower.fits


def test_the_smallest_number_of_machines_for_a_batch_that_may_not_be_split():
    found = plan("clip-vit-b32", devices=8, device="v100-16gb").smallest.machines
    assert found > 1

    def fits(machines):
        share = -(-32768 // (8 * machines))
        return plan("clip-vit-b32", devices=8 * machines, batch=8 * machines * share, device="v100-16gb").fits

    assert fits(found)
    assert not fits(found - 1)


def test_the_papers_bytes_by_hand():
    """2 bytes a matrix value, 2 + 2 of moments, 2 of error; 4, 8 and 4 of the rest; an eighth each."""
    rest = 12_292_836_992 - 12_092_178_432
    held = plan("dalle-12b", storage="paper", **CLUSTER).memory
    assert held.parameters == pytest.approx((2 * 12_092_178_432 + 4 * rest) / 8, rel=1e-9)
    assert held.moments == pytest.approx((4 * 12_092_178_432 + 8 * rest) / 8, rel=1e-9)
    assert held.gradients == pytest.approx((2 * 12_092_178_432 + 4 * rest) / 8, rel=1e-9)
    assert (held.master, held.average) == (0, 0)
    branch_inputs = 128 * (256 + 1023) * 3968 * 2
    assert branch_inputs < held.activations < 1.25 * branch_inputs


def test_key_counts_of_the_paper():
    """Image to image at 32x32: row 33 264, column 16 896, conv 57 169; with the caption 328 304, 311 936, 352 209."""
    config = zoo.resolve("dalle-12b-prior")
    whole = {kind: config.pairs(kind, 1024) for kind in ("row", "column", "conv")}
    assert whole == {"row": 328_304, "column": 311_936, "conv": 352_209}
    text = 256 * 257 // 2 + 1024 * 256
    assert {kind: n - text for kind, n in whole.items()} == {"row": 33_264, "column": 16_896, "conv": 57_169}


def test_flops_of_the_paper_size():
    made = plan("dalle-12b", batch=1024, recompute=True)
    products = 2 * 12_092_178_432 * (256 + 1023)
    attention = 4 * 3968 * (47 * 328_304 + 16 * 311_936 + 352_209)
    heads = 2 * 3968 * (1024 * 8192 + 256 * 16384)
    assert made.stage.cost.flops == pytest.approx(products + attention + heads, rel=1e-4)
    assert made.flops["backward"] == 2 * made.flops["forward"] == 2 * 1024 * made.stage.cost.flops
    assert made.flops["recompute"] == pytest.approx(1024 * (products + attention), rel=1e-4)


STATE = {
    # storage, zero, precision: bytes of parameters, master, moments, gradients for each parameter, on two devices
    ("zoo", 0, "fp32"): (4, 0, 8, 4),
    ("zoo", 1, "fp32"): (4, 2, 4, 4),
    ("zoo", 2, "fp32"): (4, 2, 4, 2),
    ("zoo", 3, "fp32"): (2, 2, 4, 2),
    ("zoo", 0, "bf16"): (4, 0, 8, 4),
    ("zoo", 3, "fp16"): (2, 2, 4, 2),
    ("zoo", 3, "resblock"): (2, 2, 4, 2),
    ("deepspeed", 3, "fp32"): (2, 2, 4, 2),
    ("deepspeed", 1, "bf16"): (2, 2, 4, 2),
    ("deepspeed", 2, "fp16"): (2, 2, 4, 1),
    ("deepspeed", 3, "bf16"): (1, 2, 4, 1),
}


@pytest.mark.parametrize(("how", "each"), STATE.items(), ids=str)
def test_state_of_each_stage(how, each):
    made = plan("dalle-prior", devices=2, storage=how[0], zero=how[1], precision=how[2], batch=64)
    n = made.stage.cost.params
    m = made.memory
    assert [m.parameters, m.master, m.moments, m.gradients] == pytest.approx([n * b for b in each], rel=1e-5)
    assert m.average == (0 if made.job.half else 2 * n if how[1] else 4 * n)
    assert sum(attrs.astuple(m)) == m.total


def test_shared_memory_shrinks_with_the_devices_that_share_it():
    def of(devices, **how):
        return plan("dalle-12b", devices=devices, batch=devices, precision="bf16", **how).memory.total

    assert of(8) == of(16) == of(64)  # a machine's eight hold a copy
    sizes = [of(n, shard="all") for n in (8, 16, 64, 512)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == of(8)
    by_stage = [of(8, zero=zero) for zero in (1, 2, 3)]
    assert by_stage == sorted(by_stage, reverse=True)


def test_traffic_by_hand():
    n = plan("dalle-prior", batch=64).stage.cost.params

    def of(**how):
        traffic = plan("dalle-prior", batch=64, precision="fp32", **how).json()["traffic"]
        assert all(sizes["dense"] == sizes["sent"] for sizes in traffic.values())
        return traffic["inside"]["sent"], traffic["between"]["sent"]

    assert of(devices=1) == (0, 0)
    assert of(devices=4, per_node=4, zero=0) == (4 * n, 0)
    assert of(devices=4, per_node=2, zero=0) == (0, 4 * n)
    assert of(devices=4, per_node=4, zero=1) == (8 * n, 0)
    assert of(devices=4, per_node=2, zero=2, accumulate=2) == (0, 12 * n)
    assert of(devices=4, per_node=2, zero=2, accumulate=2, shard="machine") == (12 * n, 2 * n)
    assert of(devices=4, per_node=4, zero=3) == (12 * n, 0)
    assert of(devices=4, per_node=4, zero=3, accumulate=4) == (48 * n, 0)
    assert of(devices=4, per_node=1, zero=3, shard="all") == (0, 12 * n)
    inside, between = of(devices=4, per_node=2, zero=3)
    assert inside == 12 * n
    assert between == pytest.approx(2 * n, rel=1e-3)


def test_a_reducer_sends_what_its_own_config_says():
    made = plan("dalle-prior", devices=4, per_node=2, zero=3, precision="fp32", batch=64, reducer="powersgd:rank=4")
    settings = registry.reducer_config("powersgd:rank=4")
    said = settings.cost(shards_of(made.stage.cost, made.job), 2)
    sizes = made.json()["traffic"]["between"]
    assert sizes == {"dense": said.dense, "sent": said.sent}
    assert 0 < sizes["sent"] < sizes["dense"]
    assert made.rank == 4
    none = plan("dalle-prior", devices=2, per_node=2, zero=3, batch=64, reducer="powersgd").json()
    assert (none["saved"], none["traffic"]["between"]["sent"]) == (0, 0)  # one machine: nobody to send to


def test_flat_shards_are_the_zoos_and_long_sides_the_papers():
    flat = plan("dalle-12b", devices=16, batch=16, storage="zoo")
    shards = list(shards_of(flat.stage.cost, flat.job))
    assert len(shards) == len(flat.stage.cost.weights)
    assert {len(s.local) for s in shards} == {1}
    paper = plan("dalle-12b", devices=16, batch=16, storage="paper")
    found = [s for s in shards_of(paper.stage.cost, paper.job) if s.matrix]
    d = 3968
    assert len(found) == 64 * 6
    assert [(s.shape, s.local) for s in found[:6]] == [
        *[((d, d), (d // 8, d))] * 4, ((4 * d, d), (d // 2, d)), ((d, 4 * d), (d, d // 2)),
    ]  # fmt: skip


def test_time_by_hand():
    numbers = "memory=80e9,flops=100e12,bandwidth=1e12,inside=1e11,between=1e10"
    made = plan("dalle-2.8b", devices=16, per_node=8, batch=32, precision="bf16", device=numbers)
    s, cost = made.seconds, made.stage.cost
    assert s.compute == pytest.approx(2 * 3 * cost.flops / (0.4 * 100e12))
    assert s.sharding == pytest.approx(3 * 4 * cost.params * 7 / 8 / 1e11)
    assert s.exchange == pytest.approx(4 * cost.params / 8 * 2 * (1 / 2) / 1e10, rel=1e-4)
    assert s.total == max(s.compute, s.sharding) + s.exchange + s.update
    assert plan("dalle-2.8b", batch=1, device="memory=80e9").seconds is None


def test_json_has_what_was_promised():
    made = zoo.plan("dalle-12b", **CLUSTER).json()
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    assert made["params"] == CARDS["dalle-12b"].params
    assert made["parts"]["prior"] == made["stage"]["params"] == 12_292_836_992
    assert made["flops_per_step"] > 0
    kinds = made["memory_per_device"]
    assert {"parameters", "master", "moments", "gradients", "activations", "buffers", "total"} <= kinds.keys()
    assert kinds["total"] == sum(size for kind, size in kinds.items() if kind != "total")
    assert {where: set(sizes) for where, sizes in made["traffic"].items()} == {
        "inside": {"dense", "sent"}, "between": {"dense", "sent"},
    }  # fmt: skip
    assert {"saved", "saved_total", "fits", "smallest", "seconds_per_step"} <= made.keys()


def test_pictures_are_drawn_from_whole_parameters():
    made = plan("dalle", devices=4, batch=64, zero=3)
    assert made.sampling == made.json()["sampling_per_device"] == made.memory.state + 4 * made.stage.cost.params
    assert any(line.split()[0] == "sampling" for line in lines(made) if line)
    nothing = [{"zero": 2}, {"zero": 3, "part": "reranker"}, {"zero": 3, "devices": 1}, {"storage": "deepspeed"}]
    for how in nothing:
        made = plan("dalle", **{"devices": 4, "batch": 64, **how})
        assert made.sampling == 0
        assert not any("sampling" in line for line in lines(made))


def test_defaults_follow_from_each_other():
    assert job_of(batch=8).zero == 0
    assert job_of(batch=8).precision == "fp32"
    assert (job_of(batch=8, devices=8).zero, job_of(batch=8, devices=8).storage) == (3, "zoo")
    assert job_of(batch=8, devices=8, storage="deepspeed").precision == "fp16"
    compressed = job_of(batch=8, devices=8, reducer="powersgd")
    assert (compressed.storage, compressed.precision, compressed.recompute) == ("paper", "resblock", True)
    assert job_of(batch=8, devices=8, reducer="powersgd", precision="bf16").storage == "deepspeed"
    assert not job_of(batch=8, devices=8, storage="deepspeed", precision="fp32").half
    assert job_of(batch=8, devices=8, reducer="powersgd", precision="fp32").storage == "zoo"
    assert job_of(batch=8, devices=8, reducer="powersgd", zero=0).storage == "zoo"
    assert job_of(batch=8, devices=8, reducer="none").storage == "zoo"
    assert job_of(batch=16, devices=16).per_node == 8
    assert job_of(batch=4, devices=2, accumulate=2).micro == 1


@pytest.mark.parametrize(("how", "line"), [
    ({"devices": 12, "per_node": 8}, "--devices 12 make no whole machines of 8 (--per-node); take 16"),
    ({"devices": 3, "batch": 64}, "--batch 64 does not divide among 3 devices; take 63"),
    ({"devices": 2, "batch": 64, "accumulate": 5}, "among 2 devices of 5 micro-batches; take 60"),
    ({"device": "v100"}, "device 'v100' is unknown; did you mean 'v100-16gb'?"),
    ({"device": "memry=3"}, "did you mean 'memory'?"),
    ({"device": "memory=-3"}, "is not a positive number"),
    ({"device": "flops=1e12"}, "'memory' is missing"),
    ({"storage": "paper", "zero": 2}, "take --zero 3"),
    ({"storage": "paper", "precision": "fp16"}, "take --precision resblock"),
    ({"storage": "papers"}, "did you mean 'paper'?"),
    ({"precision": "fp8"}, "did you mean"),
    ({"storage": "deepspeed", "zero": 0, "precision": "fp16"}, "needs --zero 1, 2 or 3"),
    ({"precision": "bf16", "device": "v100-16gb"}, "has no bf16 arithmetic"),
    ({"shard": "rack"}, "one of machine, all"),
    ({"zero": 4}, "0, 1, 2 or 3"),
    ({"devices": 0}, "at least 1"),
    ({"part": "priors"}, "did you mean 'prior'?"),
    ({"part": "tokenizer"}, "not trained by gradient"),
    ({"part": "reranker", "accumulate": 2}, "--accumulate must be 1"),
    ({"reducer": "powersgd", "devices": 2, "zero": 1}, "take --zero 3, --zero 0 or --per-node 1"),
    ({"reducer": "powersgd", "devices": 4, "per_node": 2, "shard": "all"}, "take --shard machine, or leave"),
    ({"reducer": "powersg", "devices": 2}, "did you mean 'powersgd'?"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_one_line(how, line):
    with pytest.raises((ConfigError, UnknownName)) as caught:
        plan("dalle", **how)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_parts_choose_the_stage():
    assert plan("dalle").stage.part == "prior"
    assert plan("dalle").stage.frozen.keys() == {"tokenizer", "codebook"}
    assert plan("dalle", part="codebook").stage.frozen == {}
    assert plan("dalle", part="reranker").stage.frozen.keys() == {"reranker.tokenizer"}
    assert plan("dvae-8192").stage.part == "codebook"
    changed = plan("dalle", overrides=["prior.depth=2", "codebook=vqvae"])
    assert changed.parts["codebook"] == CARDS["vqvae"].params
    assert len(changed.stage.cost.blocks) == 4
    with pytest.raises(ConfigError, match="has none"):
        plan("vqvae", overrides=["net.residual_layers=0"], precision="resblock")


def test_a_part_that_states_no_cost_is_named():
    @attrs.frozen
    class Silent:
        train: int = 0

    node, _ = resolve_tree("dalle-prior")
    with pytest.raises(PluginFailed, match=r"prior \(card 'dalle-prior'\) cannot be planned: .* no cost"):
        cost_of("prior", node, Silent())


def test_open_sizes_are_named():
    config = attrs.evolve(zoo.resolve("dalle-prior"), vocab_size=None)
    with pytest.raises(ConfigError, match="vocab_size: still open"):
        config.cost()


def test_buckets_are_counted_and_capped():
    def of(buckets):
        return plan("dalle-2.8b", devices=2, batch=2, precision="fp32", zero=3, buckets=buckets).memory.buffers

    more = attrs.evolve(DEFAULT, reduce=DEFAULT.reduce + 10**8)
    assert of(more) - of(DEFAULT) >= 4 * 10**8
    assert of(attrs.evolve(DEFAULT, prefetch=10**8, live=10**8)) > of(DEFAULT)
    assert of(attrs.evolve(DEFAULT, reuse=10**8)) > of(DEFAULT)
    assert DEFAULT.within(1000) == Buckets(reduce=1000, prefetch=1000, live=1000, reuse=1000, persist=1000, group=1000)
    assert set(DEFAULT.zero_optimization()) >= {"reduce_bucket_size", "stage3_max_live_parameters", "sub_group_size"}


def test_devices_by_numbers():
    device = device_of("memory=24e9,flops=80e12,between=1.25e9")
    assert (device.usable, device.flops("fp32"), device.flops("bf16")) == (24_000_000_000, 80e12, 80e12)
    assert math.isinf(device.inside)
    assert all(d.memory > d.reserved > 0 and d.full < d.half for d in DEVICES.values())


def test_memory_grows_by_what_a_reducer_remembers():
    made = plan("dalle-2.8b", devices=16, batch=16, precision="bf16", reducer="powersgd:rank=32,dense_steps=0")
    plain = memory(made.stage, made.job)
    assert made.reduced.matrices_dense <= made.memory.buffers - plain.buffers + 1
    assert made.memory.total > plain.total


def test_planning_imports_no_torch():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
import zoo
from zoo.cli import main
assert main(["plan", "dalle-12b", "--devices", "1024", "--per-node", "8", "--device", "v100-16gb", "--json"]) == 0
assert main(["plan", "dalle", "--devices", "4", "--per-node", "2", "--reducer", "powersgd", "--batch", "64"]) == 0
zoo.plan("vqvae")
zoo.plan("clip")
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
