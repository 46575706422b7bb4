"""CLIP: a picture tower and a text tower trained to agree, used as the reranker.

A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision (arXiv:2103.00020).
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return the reranker."""
    return [
        ModelSpec(
            interface="reranker",
            config="zoo_clip.configs:Clip",
            build="zoo_clip.model:Clip",
            variants={
                "clip": "zoo_clip.configs:clip",
                "clip-vit-b32": "zoo_clip.configs:clip_vit_b32",
                "clip-tiny": "zoo_clip.configs:clip_tiny",
            },
            interop={"huggingface": "zoo_clip.interop:from_huggingface", "openai": "zoo_clip.interop:from_openai"},
            exports={"huggingface": "zoo_clip.interop:to_huggingface", "openai": "zoo_clip.interop:to_openai"},
            left_out="CLIP's own pieces are in no weight file, and a tokenizer fitted here gives other ids: "
            "tokenizer=bpe-clip reads the published ones; or score with image_features(images) and "
            "text_features(ids, mask), the ids from a public CLIP tokenizer, the mask from "
            "zoo_clip.interop.caption_mask",
        )
    ]
