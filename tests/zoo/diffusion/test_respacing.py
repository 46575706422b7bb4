"""Which steps are visited: the public names, and the section rule."""

import pytest

from zoo.diffusion.respacing import NAMED, counts, spaced

PUBLIC = {
    "fast27": [999, 800, 799, 600, 599, 500, 400, 399, 377, 355, 333, 311, 288, 266, 244, 222, 200, 199, 177, 155, 133,
               111, 88, 66, 44, 22, 0],
    "smart27": [999, 976, 952, 928, 905, 882, 858, 857, 810, 762, 715, 714, 572, 429, 428, 286, 285, 238, 190, 143, 142,
                118, 95, 71, 47, 24, 0],
    "smart50": [999, 988, 977, 966, 955, 944, 933, 922, 911, 900, 899, 879, 859, 840, 820, 800, 799, 766, 733, 700, 699,
                650, 600, 599, 500, 499, 400, 399, 350, 300, 299, 266, 233, 200, 199, 179, 159, 140, 120, 100, 99, 88,
                77, 66, 55, 44, 33, 22, 11, 0],
    "super27": [999, 991, 982, 974, 966, 958, 950, 941, 933, 925, 916, 908, 900, 899, 874, 850, 825, 800, 799, 700, 600,
                500, 400, 300, 200, 100, 0],
    "super40": [999, 992, 985, 978, 971, 964, 957, 949, 942, 935, 928, 921, 914, 907, 900, 899, 879, 859, 840, 820, 800,
                799, 766, 733, 700, 699, 650, 600, 599, 500, 499, 400, 399, 300, 299, 200, 199, 100, 99, 0],
}  # fmt: skip
"""As diffusers 0.42.1 prints them in pipelines/deepfloyd_if/timesteps.py."""


@pytest.mark.parametrize("name", NAMED)
def test_sums_are_the_numbers_in_the_names(name: str) -> None:
    total = int("".join(c for c in name if c.isdigit()))
    assert sum(counts(name)) == total
    visited = spaced(1000, counts(name))
    assert len(set(visited)) == total
    assert (visited[0], visited[-1]) == (0, 999)
    assert visited == sorted(visited)


@pytest.mark.parametrize("name", PUBLIC)
def test_named_steps_are_the_public_ones(name: str) -> None:
    assert spaced(1000, counts(name))[::-1] == PUBLIC[name]


def test_longer_names_at_a_few_places() -> None:
    smart100, smart185 = (spaced(1000, counts(name))[::-1] for name in ("smart100", "smart185"))
    assert smart100[:14] == [999, 995, 992, 989, 985, 981, 978, 975, 971, 967, 964, 961, 957, 956]
    assert smart100[-6:] == [219, 176, 132, 88, 44, 0]
    assert smart185[:8] == [999, 997, 995, 992, 990, 988, 986, 984]
    assert smart185[-8:] == [219, 176, 175, 132, 131, 88, 44, 0]


def test_sections() -> None:
    assert spaced(300, (10, 15, 20))[:3] == [0, 11, 22]
    assert len(spaced(300, (10, 15, 20))) == 45
    assert spaced(10, (10,)) == list(range(10))
    assert spaced(10, (1, 1, 1)) == [0, 4, 7]  # sections of 4, 3 and 3
    assert counts("3, 2,1") == (3, 2, 1)


def test_what_is_no_spacing_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'smart50'"):
        counts("smart5")
    for wrong in ("", "1,,2", "-3", "2.5"):
        with pytest.raises(ValueError, match="no list of steps"):
            counts(wrong)
    with pytest.raises(ValueError, match="4 are more than the 3 steps of section 2 of 3"):
        spaced(10, (4, 4, 1))
