import attrs
import pytest
import torch

from zoo.interfaces import Batch, Cond
from zoo.parts import Recipe, Ref


def test_a_batch_is_cut_row_by_row() -> None:
    batch = Batch(images=torch.arange(4.0).view(4, 1, 1, 1), texts=("a", "b", "c", "d"))
    part = batch[1:3]
    assert len(batch) == 4
    assert len(part) == 2
    assert part.texts == ("b", "c")
    assert part.images is not None
    assert part.images.flatten().tolist() == [1, 2]
    assert part.codes is None
    assert set(batch.filled()) == {"images", "texts"}
    assert len(Batch()) == 0
    assert batch.to("meta").images.is_meta  # type: ignore[union-attr]
    assert batch.to("meta").texts == batch.texts


def test_a_condition_is_indexed_row_by_row() -> None:
    cond = Cond(label=torch.tensor([5, 6, 7]), drop=torch.tensor([True, False, True]))
    some = cond[torch.tensor([2, 0, 0])]
    assert some.label is not None
    assert some.drop is not None
    assert some.label.tolist() == [7, 5, 5]
    assert some.drop.tolist() == [True, True, True]
    assert Cond()[:1].filled() == {}


def test_values_that_travel_are_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Batch().codes = None  # type: ignore[misc]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


def test_a_reference_reads_like_its_config_once_bound() -> None:
    open_ref = Ref("dvae", "codebook")
    with pytest.raises(AttributeError, match="'dvae' has no 'vocab_size'"):
        _ = open_ref.vocab_size
    bound = attrs.evolve(open_ref, config=Recipe(lr=0.5))
    assert bound.lr == 0.5
    assert bound.card == "dvae"


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr_end", -1.0), ("clip", 0.0), ("ema", 1.0), ("batch", 0), ("accumulate", 0), ("steps", 0)],
)
def test_a_recipe_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Recipe(**{field: value})
