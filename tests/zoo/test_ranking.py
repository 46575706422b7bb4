"""The best of many candidates, whatever pieces they come in."""

import pytest
import torch

from zoo.ranking import Best


@pytest.mark.parametrize("chunk", [1, 3, 4, 7, 100])
@pytest.mark.parametrize("keep", [1, 2, 5])
def test_pieces_change_nothing_and_the_first_of_equals_is_kept(chunk, keep):
    prompts, each = 4, 6
    prompt = torch.arange(prompts).repeat_interleave(each)
    scores = torch.randint(0, 3, (prompts * each,), generator=torch.Generator().manual_seed(1)).float()
    codes = torch.arange(prompts * each)[:, None].repeat(1, 2)
    best = Best(prompts, keep)
    for start in range(0, len(prompt), chunk):
        rows = slice(start, start + chunk)
        best.add(prompt[rows], codes[rows], scores[rows])
    order = scores.view(prompts, each).argsort(dim=1, descending=True, stable=True)[:, :keep]
    expected = (order + each * torch.arange(prompts)[:, None]).flatten()
    assert torch.equal(best.codes()[:, 0], expected)


def test_no_more_is_held_than_is_kept():
    best = Best(1, 2)
    for start in range(0, 640, 64):
        best.add(torch.zeros(64, dtype=torch.long), torch.full((64, 1000), start), torch.rand(64))
    (found,) = best._found
    assert found is not None
    assert [x.untyped_storage().nbytes() for x in found] == [2 * 4, 2 * 1000 * 8]


def test_a_candidate_without_a_score_is_the_last():
    best = Best(1, 2)
    best.add(torch.zeros(3, dtype=torch.long), torch.arange(3)[:, None], torch.tensor([1.0, torch.nan, 5.0]))
    assert best.codes().flatten().tolist() == [2, 0]


def test_too_few_candidates_are_a_mistake_of_ours():
    best = Best(2, 2)
    best.add(torch.zeros(3, dtype=torch.long), torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ValueError, match="fewer than 2"):
        best.codes()
