"""Text parts: byte-pair tokenizers, fitted on the captions at hand or imported from published systems.

T. Kudo, J. Richardson: SentencePiece (arXiv:1808.06226); I. Provilkov et al.: BPE-Dropout (arXiv:1910.13267);
R. Sennrich et al.: Neural Machine Translation of Rare Words with Subword Units (arXiv:1508.07909).
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1
FITTED = ("bpe-16384", "bpe-16384-128", "bpe-16384-64", "bpe-49408", "bpe-shapes", "bpe-tiny")
PUBLISHED = {
    "bpe-clip": ("openai", "huggingface", "tokenizers"),
    "bpe-mindalle": ("huggingface",),
    "bpe-rudalle": ("youtokentome",),
}
"""Card -> the layouts of its published files."""


def _spec(config: str, build: str, *names: str, layouts: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(
        interface="tokenizer",
        config=f"zoo_text.configs:{config}",
        build=f"zoo_text.{build}",
        variants={name: f"zoo_text.configs:{name.replace('-', '_')}" for name in names},
        interop={layout: f"zoo_text.interop:from_{layout}" for layout in layouts},
    )


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return the tokenizers."""
    public = [_spec("PublicBpe", "published:PublicTokenizer", name, layouts=x) for name, x in PUBLISHED.items()]
    return [_spec("Bpe", "model:BpeTokenizer", *FITTED), *public]
