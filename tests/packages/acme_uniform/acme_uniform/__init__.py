"""A prior whose codes know nothing of each other, and a DALL-E that uses it."""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    return [
        ModelSpec(
            interface="prior",
            config="acme_uniform.configs:Uniform",
            build="acme_uniform.model:UniformPrior",
            variants={"uniform": "acme_uniform.configs:uniform"},
        ),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Autoregressive",
            build="zoo.generators:AutoregressiveGenerator",
            variants={"dalle-uniform": "acme_uniform.configs:dalle_uniform"},
        ),
    ]
