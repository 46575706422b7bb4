"""Too little memory is said before anything is allocated."""

import logging

import attrs
import pytest
import torch

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.planning.devices import GIB
from zoo.planning.plan import plan
from zoo.resolution import resolve_tree
from zoo.train import room
from zoo.train.options import TrainOptions
from zoo.train.world import World

CPU = torch.device("cpu")


def asked(name="dalle", part="prior", *, free, processes=1, world=None, zero=0, device=CPU, sample_every=0, **options):
    """Ask whether a stage has room where so many bytes are free; return whether pictures have."""
    node, config = resolve_tree(name)
    recipe = attrs.evolve(getattr(config, part).config.train, batch=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "free_here", lambda device: free)
        said = TrainOptions(model=name, sample_every=sample_every, **options)
        return room.check_room(
            node, config, part, recipe, said, world or World(size=processes),
            zero=zero, per_node=processes, here=processes, device=device,
        )  # fmt: skip


def needs(name="dalle", processes=1, zero=0, **how):
    return plan(name, devices=processes, per_node=processes, zero=zero, batch=8, precision="fp32", storage="zoo",
                **how).memory  # fmt: skip


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(("processes", "zero"), [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3)])
def test_what_is_free_decides(processes, zero, caplog):
    how = {"processes": processes, "zero": zero}
    needed = needs(**how)
    asked(free=processes * needed.total, **how)
    assert warned(caplog) == []
    asked(free=processes * needed.total - 1, **how)
    asked(free=processes * needed.state, **how)
    lines = warned(caplog)
    assert len(lines) == 2
    assert all("by its plan" in line and "\n" not in line for line in lines)
    assert all(("--zero 3" in line) == (processes > 1 and zero < 3) for line in lines)
    with pytest.raises(ConfigError, match=r"prior: training needs .* alone, and this machine has .* GiB free"):
        asked(free=processes * needed.state - 1, **how)


def test_pictures_are_left_out_where_whole_parameters_have_no_room(caplog):
    how, big = {"processes": 2, "zero": 3, "sample_every": None}, 1 << 40
    whole = 2 * (needs(processes=2, zero=3).state + 4 * plan("dalle", batch=8).stage.cost.params)
    assert asked(free=whole, **how)
    caplog.clear()
    assert not asked(free=whole - 1, **how)
    assert "whole on every process, and this machine has" in warned(caplog)[-1]
    assert warned(caplog)[-1].endswith("no sample pictures are drawn")
    caplog.clear()
    assert asked(free=big, **how)
    assert asked(free=whole - 1, processes=2, zero=3)  # none were asked for
    assert asked(free=2 * needs(processes=2).state, processes=2, zero=0, sample_every=None)  # they are whole anyway
    assert not any("pictures" in line for line in warned(caplog))


def test_the_line_has_the_numbers_and_what_to_type():
    with pytest.raises(ConfigError) as caught:
        asked("dalle-2.8b", free=22 * GIB, processes=2, zero=0)
    assert str(caught.value) == (
        "prior: training needs 66.9 GiB (2 processes) for weights, gradients and optimiser alone, and this machine has "
        "22 GiB free: share it between 3 or more such machines with --zero 3 --shard all, or take a smaller model "
        "(--set)"
    )


def test_sharding_is_named_where_it_is_enough():
    few = needs(processes=2, zero=3)
    with pytest.raises(ConfigError, match=r"take --zero 3 --shard machine$"):
        asked(free=2 * few.state, processes=2, zero=0)


def test_a_gpu_has_one_process(monkeypatch):
    device = torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"and cuda:0 has .* take --zero 3 --shard machine"):
        asked(free=needs(processes=2, zero=3).state, processes=2, zero=0, device=device)
    with pytest.raises(ConfigError, match="such GPUs with --zero 3"):
        asked(free=needs().state - 1, device=device)


def test_a_file_of_the_users_own_may_put_state_elsewhere(tmp_path, caplog):
    """DeepSpeed can keep the optimiser's state of a GPU on the host."""
    own, free = tmp_path / "ds.json", needs(zero=1).state - 1
    asked(free=free, zero=1, device=torch.device("cuda", 0), engine_config=own)
    assert len(warned(caplog)) == 1
    with pytest.raises(ConfigError):
        asked(free=free, zero=1, engine_config=own)


def test_what_may_help_a_warning(caplog):
    asked(free=needs().total - 1)
    asked(free=needs(recompute=True).total - 1, recompute=True)
    first, second = warned(caplog)
    assert first.endswith("if memory runs out: --recompute, a smaller --batch or more --accumulate")
    assert second.endswith("if memory runs out: a smaller --batch or more --accumulate")


def test_all_processes_hear_of_the_one_that_is_short():
    class Two(World):
        def gather(self, value):
            return [value, ("codebook: too large over there", "", "")]

    with pytest.raises(ConfigError, match="over there"):
        asked(part="codebook", free=1 << 40, world=Two())


def test_a_part_that_states_no_cost_is_passed_over(monkeypatch, caplog):
    node, config = resolve_tree("dalle")
    monkeypatch.delattr(type(config.prior.config), "cost")
    monkeypatch.setattr(room, "free_here", lambda device: 0)
    for part in ("prior", "tokenizer", "no-part-at-all"):
        room.check_room(node, config, part, Recipe(batch=8), TrainOptions(model="dalle"), World(), zero=0,
                        per_node=1, here=1, device=CPU)  # fmt: skip
    assert warned(caplog) == []


def test_free_memory_is_what_the_system_and_its_limits_leave(tmp_path):
    assert 0 < room.free_here(CPU) < 1 << 60
    own, root = tmp_path / "cgroup", tmp_path / "fs"
    assert room.limit_left(root, own) == room.UNLIMITED

    def group(folder, most, now, limit, cached):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / most).write_text(f"{limit}\n")
        (folder / now).write_text(f"{3 * GIB}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cached} {GIB}\n")

    own.write_text("0::/a/b\n")
    group(root / "a" / "b", "memory.max", "memory.current", "max", "inactive_file")
    assert room.limit_left(root, own) == room.UNLIMITED
    group(root / "a", "memory.max", "memory.current", 8 * GIB, "inactive_file")
    assert room.limit_left(root, own) == 6 * GIB
    own.write_text("5:cpu:/a\n4:memory:/job\n0::/\n")
    group(root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", 4 * GIB, "total_inactive_file")
    assert room.limit_left(root, own) == 2 * GIB
