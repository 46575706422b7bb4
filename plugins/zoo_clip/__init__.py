"""CLIP: a picture tower and a text tower trained to agree, used as the reranker; and its text tower alone.

A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision (arXiv:2103.00020).
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1
TEXT = ("clip-text", "clip-text-tiny", "clip-vit-b32-text", "clip-vit-l14-text")


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return the reranker and the text encoder."""
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
        ),
        ModelSpec(
            interface="text_encoder",
            config="zoo_clip.text_configs:ClipText",
            build="zoo_clip.text:ClipText",
            variants={name: f"zoo_clip.text_configs:{name.replace('-', '_')}" for name in TEXT},
            interop={name: f"zoo_clip.text_interop:from_{name}" for name in ("huggingface", "openai")},
            exports={name: f"zoo_clip.text_interop:to_{name}" for name in ("huggingface", "openai")},
            described={"huggingface": "zoo_clip.text_interop:check_description"},
        ),
    ]
