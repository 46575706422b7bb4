"""Any prior runs on any codebook: the smallest of each family, all with all."""

import pytest

import zoo
from zoo.catalogue import Card
from zoo.construct import construct
from zoo.resolution import resolve_tree
from zoo.testing.generators import pictures_follow_the_seed, stages_train
from zoo.testing.kit import Case


def tiny(kind: str) -> list[Card]:
    return [card for card in zoo.list_models() if card.kind == kind and card.name.endswith("-tiny")]


@pytest.mark.parametrize("prior", tiny("prior"), ids=lambda card: card.name)
@pytest.mark.parametrize("codebook", tiny("codebook"), ids=lambda card: card.name)
def test_a_pair_trains_and_samples(codebook: Card, prior: Card) -> None:
    overrides = [f"codebook={codebook.name}", f"prior={prior.name}", "reranker=none", "image_size=16"]
    node, config = resolve_tree("dalle-tiny", overrides, classes=3)
    assert config.prior.vocab_size == config.codebook.facts(16).vocab_size
    case = Case(f"{codebook.name}+{prior.name}", "generator", config, lambda seed: construct(node, config, seed=seed))
    stages_train(case)
    pictures_follow_the_seed(case)


@pytest.mark.parametrize("reads", ["label", "nothing"])
@pytest.mark.parametrize("prior", tiny("prior"), ids=lambda card: card.name)
def test_a_prior_reads_labels_or_nothing(prior: Card, reads: str) -> None:
    overrides = [f"prior={prior.name}", f"prior.reads={reads}", "tokenizer=none", "reranker=none", "image_size=16"]
    node, config = resolve_tree("dalle-tiny", overrides, classes=3)
    case = Case(f"{prior.name}-{reads}", "generator", config, lambda seed: construct(node, config, seed=seed))
    stages_train(case)
    pictures_follow_the_seed(case)
