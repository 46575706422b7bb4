"""DALL-E: a decoder-only sparse transformer over one stream of caption tokens and image codes.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


def _named(module: str, *names: str) -> dict[str, str]:
    return {name: f"zoo_dalle.{module}:{name.replace('-', '_').replace('.', '_')}" for name in names}


def _relative(name: str) -> ModelSpec:
    return ModelSpec(
        interface="prior",
        config="zoo_dalle.configs:DallePrior",
        build="zoo_dalle.model:DallePrior",
        variants=_named("relatives", f"{name}-1.3b-prior", f"{name}-prior-tiny"),
        interop={name: f"zoo_dalle.interop:from_{name}"},
        exports={name: f"zoo_dalle.interop:to_{name}"},
        left_out="these weights know the authors' pieces alone, which are files of their own: "
        f"tokenizer=bpe-{name} reads them, and any other tokenizer gives other ids",
    )


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    return [
        ModelSpec(
            interface="prior",
            config="zoo_dalle.configs:DallePrior",
            build="zoo_dalle.model:DallePrior",
            variants=_named(
                "configs",
                *("dalle-12b-prior", "dalle-5.6b-prior", "dalle-2.8b-prior", "dalle-prior", "dalle-prior-tiny"),
            ),
        ),
        *(_relative(name) for name in ("mindalle", "rudalle")),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Autoregressive",
            build="zoo.generators:AutoregressiveGenerator",
            variants=_named("systems", "dalle", "dalle-12b", "dalle-5.6b", "dalle-2.8b", "dalle-tiny")
            | _named("relatives", "mindalle-1.3b", "rudalle-1.3b"),
        ),
    ]
