"""The paper's ranks and savings, what is compressed, and how settings are said."""

import subprocess
import sys

import pytest

from zoo.errors import ConfigError
from zoo.interfaces import Shard
from zoo_powersgd import configs
from zoo_powersgd.layout import LowRank, low_rank

PAPER = [(3968, 896, 112, 0.8589), (2688, 640, 80, 0.8512), (1920, 512, 64, 0.8333)]
"""Width, rank, rank of one of 8 shards, compression."""


def resblocks(d: int, m: int = 8) -> list[Shard]:
    """Return a layer's matrices as DALL-E shards them (its Table 2): d x 4d on the axis of 4d, all others on any."""
    square = [Shard(shape=(d, d), local=(d, d // m), axis=1, matrix=True)] * 4
    first = Shard(shape=(d, 4 * d), local=(d, 4 * d // m), axis=1, matrix=True)
    second = Shard(shape=(4 * d, d), local=(4 * d // m, d), axis=0, matrix=True)
    return [*square, first, second]


@pytest.mark.parametrize(("d", "rank", "each", "saved"), PAPER)
@pytest.mark.parametrize("settings", ["", "format=full", "format=1-6-9,rank=auto"])
def test_the_papers_ranks_and_compression(d, rank, each, saved, settings) -> None:
    config = configs.powersgd_dalle(settings)
    assert configs.rank_of(d) == rank
    assert {low_rank(config, shard).rank for shard in resblocks(d)} == {each}
    traffic = config.cost(resblocks(d) * 64, 128)
    assert round(traffic.saved, 4) == saved
    assert traffic.saved == pytest.approx(1 - 5 * rank / (8 * d), abs=1e-6)  # its formula for m = 8


@pytest.mark.parametrize(("d", "rank", "each", "saved"), PAPER)
def test_the_original_takes_the_same_ranks_at_these_sizes(d, rank, each, saved) -> None:
    assert round(configs.powersgd().cost(resblocks(d), 128).saved, 4) == saved


def test_over_all_gradients_twelve_billion_parameters_save_83_per_cent() -> None:
    """Embeddings, heads, gains and biases go in fp32 ([2] section 2.4); matrices in 16 bits."""
    d = 3968
    vectors = Shard(shape=(64 * (4 * d + 3 * d + d + 4 * d + d),), local=(64 * 13 * d // 8,), axis=0, matrix=False)
    rows = 2 * (16384 + 8192) + 256 + 256 + 64
    tables = Shard(shape=(rows, d), local=(rows * d // 8,), axis=0, matrix=False)
    traffic = configs.powersgd_dalle().cost([*(resblocks(d) * 64), vectors, tables], 128)
    assert traffic.matrices_dense == 2 * 12_092_178_432 // 8
    assert traffic.saved_total == pytest.approx(0.83, abs=0.005)
    assert traffic.start_up == 4 * (12_092_178_432 + 64 * 13 * d + rows * d) // 8


def test_small_widths_still_compress() -> None:
    """At width 128 a rank of 128 would save nothing."""
    shards = [
        Shard(shape=(384, 128), local=(192, 128), axis=0, matrix=True),
        Shard(shape=(128, 128), local=(64, 128), axis=0, matrix=True),
        Shard(shape=(512, 128), local=(256, 128), axis=0, matrix=True),
        Shard(shape=(128, 512), local=(64 * 512,), axis=0, matrix=True),
    ]
    original, dalle = configs.powersgd(), configs.powersgd_dalle()
    assert [low_rank(original, s).rank for s in shards] == [4] * 4
    assert [low_rank(dalle, s).rank for s in shards] == [15] * 4
    assert 15 * 2 >= 0.226 * 128
    for config, fewer in ((original, 10), (dalle, 4)):
        traffic = config.cost(shards, 2)
        assert traffic.matrices_dense >= fewer * traffic.matrices


def test_the_rank_is_never_more_than_a_side() -> None:
    assert low_rank(configs.powersgd("rank=50,min_elements=1"), matrix(3, 4000)) is None
    assert low_rank(configs.powersgd_dalle("rank=1,min_elements=1"), matrix(1, 9)) is None
    assert low_rank(configs.powersgd("rank=1,min_elements=1"), matrix(3, 4000)) == LowRank(3, 4000, 1)


def matrix(*local: int, shape: tuple[int, ...] | None = None, axis: int | None = None, matrix: bool = True) -> Shard:
    return Shard(shape=shape or local, local=local, axis=axis, matrix=matrix)


@pytest.mark.parametrize(
    ("shard", "rows", "columns", "rank"),
    [
        (matrix(64, 96), 64, 96, 8),
        (matrix(64, 8, 3, 3), 64, 72, 8),
        (matrix(6144, shape=(64, 96)), 64, 96, 8),
        (matrix(3072, shape=(64, 96), axis=0), 32, 96, 4),
        (matrix(64, 24, shape=(64, 96), axis=1), 64, 24, 2),
        (matrix(64, 2, 9, 9, shape=(64, 8, 9, 9), axis=1), 64, 162, 2),
        (matrix(22 * 96, shape=(64, 96), axis=0), 22, 96, 3),  # 22 + 22 + 20 rows
    ],
)
def test_a_shard_is_a_matrix_of_its_own_and_has_its_share_of_the_rank(shard, rows, columns, rank) -> None:
    assert low_rank(configs.powersgd("rank=8,min_elements=1,min_saving=1"), shard) == LowRank(rows, columns, rank)


@pytest.mark.parametrize(
    "shard",
    [
        matrix(64, 96, matrix=False),
        matrix(6144),
        matrix(3070, shape=(64, 96), axis=0),  # ends within a row
        matrix(16, 16),  # too small
        matrix(0, 96, shape=(1, 96), axis=0),
        matrix(20, 300),  # rank 10 would save less than half
    ],
)
def test_what_cannot_be_compressed_is_sent_whole(shard) -> None:
    config = configs.powersgd("rank=10")
    assert low_rank(config, shard) is None
    size = 4
    for n in shard.local:
        size *= n
    traffic = config.cost([shard], 2)
    assert (traffic.matrices, traffic.matrices_dense, traffic.rest) == (0, 0, size)


def test_the_p_side_is_the_smaller() -> None:
    assert (LowRank(8, 5, 2).p, LowRank(8, 5, 2).q, LowRank(8, 5, 2).transposed) == (5, 8, True)
    assert (LowRank(5, 8, 2).p, LowRank(5, 8, 2).q, LowRank(5, 8, 2).transposed) == (5, 8, False)


def test_bytes_by_hand() -> None:
    shards = [matrix(64, 96), matrix(100, matrix=False), matrix(96, 80)]
    config = configs.powersgd("rank=4,min_elements=1")
    traffic = config.cost(shards, 3)
    assert traffic.matrices == 4 * 4 * (64 + 96 + 96 + 80)
    assert traffic.matrices_dense == 4 * (64 * 96 + 96 * 80)
    assert traffic.rest == 4 * (100 + 1)
    assert traffic.start_up == 4 * (64 * 96 + 100 + 96 * 80)
    assert traffic.sent == traffic.matrices + traffic.rest
    dalle = configs.powersgd_dalle("rank=5").cost(shards, 3)
    assert dalle.matrices == 2 * 3 * (-(-5 * 144 // 3) + -(-5 * 192 // 3))
    assert dalle.matrices_dense == 2 * (64 * 96 + 96 * 80)
    assert dalle.rest == 4 * (100 + 2)
    assert dalle.saved_total == pytest.approx(1 - dalle.sent / (dalle.matrices_dense + dalle.rest))
    alone = config.cost(shards, 1)
    assert (alone.sent, alone.start_up, alone.saved, alone.saved_total) == (0, 0, 0.0, 0.0)


def test_settings_are_read_strictly() -> None:
    config = configs.powersgd("rank=4, dense_steps=0,min_saving=3")
    assert (config.rank, config.dense_steps, config.min_saving) == (4, 0, 3.0)
    assert configs.powersgd("rank=auto") == configs.powersgd() == configs.powersgd("rank=none")
    assert configs.powersgd_dalle("format=full").format == "full"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("rnk=4", r"powersgd\.rnk: no such field; did you mean 'rank'"),
        ("rank=four", r"powersgd\.rank: expected an integer, got 'four'"),
        ("rank=4.5", r"powersgd\.rank: expected an integer"),
        ("rank=0", "powersgd: 'rank' must be >= 1: 0"),
        ("dense_steps=-1", "powersgd: 'dense_steps' must be >= 0: -1"),
        ("min_saving=0.5", "powersgd: 'min_saving' must be >= 1.0: 0.5"),
        ("rank", r"powersgd: 'rank' is not of the form setting=value, such as powersgd:rank=8"),
        ("=4", "not of the form"),
    ],
)
def test_mistakes_are_one_clear_line(settings, said) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        configs.powersgd(settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"powersgd-dalle\.format: expected one of '1-6-9', 'full', got '1-5-10'"):
        configs.powersgd_dalle("format=1-5-10")


def test_costs_need_no_torch() -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from zoo_powersgd import zoo_specs
from zoo.interfaces import Shard
from zoo.specs import locate
for spec in zoo_specs():
    config = locate(spec.config)("dense_steps=3")
    assert config.dense_steps == 3
    assert config.cost([Shard(shape=(512, 512), local=(512, 512), matrix=True)], 2).saved > 0, spec.name
print([spec.name for spec in zoo_specs()], "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['powersgd', 'powersgd-dalle'] False", done.stderr
