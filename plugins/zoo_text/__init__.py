"""Text parts: tokenizers, fitted on the captions at hand or imported from published systems, and T5's encoder.

T. Kudo, J. Richardson: SentencePiece (arXiv:1808.06226); I. Provilkov et al.: BPE-Dropout (arXiv:1910.13267);
R. Sennrich et al.: Neural Machine Translation of Rare Words with Subword Units (arXiv:1508.07909); C. Raffel et al.:
Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (arXiv:1910.10683).
"""

import re
from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1
FITTED = ("bpe-16384", "bpe-16384-128", "bpe-16384-64", "bpe-49408", "bpe-shapes", "bpe-tiny")
PUBLISHED = {
    "bpe-clip": ("openai", "huggingface", "tokenizers"),
    "bpe-mindalle": ("huggingface",),
    "bpe-rudalle": ("youtokentome",),
    "sentencepiece-t5": ("sentencepiece",),
}
"""Card -> the layouts of its published files."""
T5 = (
    *(f"t5-v1.0-{size}" for size in ("small", "base", "large", "3b", "11b")),
    *(f"t5-v1.1-{size}" for size in ("small", "base", "large", "xl", "xxl")),
    "t5", "t5-tiny",
)  # fmt: skip


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
    """Return the tokenizers and T5's encoder."""
    public = [_spec("PublicBpe", "published:PublicTokenizer", name, layouts=x) for name, x in PUBLISHED.items()]
    encoder = ModelSpec(
        interface="text_encoder",
        config="zoo_text.t5_configs:T5",
        build="zoo_text.t5_model:T5Encoder",
        variants={name: f"zoo_text.t5_configs:{re.sub('[.-]', '_', name)}" for name in T5},
        interop={"transformers": "zoo_text.t5_interop:from_transformers"},
        exports={"transformers": "zoo_text.t5_interop:to_transformers"},
        folders={"transformers": "zoo_text.t5_interop:to_folder"},
        described={"transformers": "zoo_text.t5_interop:check_description"},
    )
    return [_spec("Bpe", "model:BpeTokenizer", *FITTED), *public, encoder]
