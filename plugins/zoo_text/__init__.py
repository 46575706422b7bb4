"""Text parts: a byte-pair tokenizer that is fitted on the captions at hand.

T. Kudo, J. Richardson: SentencePiece (arXiv:1808.06226); I. Provilkov et al.: BPE-Dropout (arXiv:1910.13267).
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return the tokenizer."""
    return [
        ModelSpec(
            interface="tokenizer",
            config="zoo_text.configs:Bpe",
            build="zoo_text.model:BpeTokenizer",
            variants={
                "bpe-16384": "zoo_text.configs:bpe_16384",
                "bpe-16384-128": "zoo_text.configs:bpe_16384_128",
                "bpe-16384-64": "zoo_text.configs:bpe_16384_64",
                "bpe-49408": "zoo_text.configs:bpe_49408",
                "bpe-shapes": "zoo_text.configs:bpe_shapes",
                "bpe-tiny": "zoo_text.configs:bpe_tiny",
            },
        )
    ]
