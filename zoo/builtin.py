"""What the core itself contributes, through the same hook as every plugin: datasets, pixels, the torch engine."""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import DatasetSpec, EngineSpec, ModelSpec, Spec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[Spec]:
    """Return the built-in datasets, latent and engine."""
    return [
        ModelSpec(
            interface="latent",
            config="zoo.pixels:Pixels",
            build="zoo.pixels:PixelLatent",
            variants={"pixels": "zoo.pixels:pixels"},
        ),
        DatasetSpec(
            name="shapes",
            open="zoo.data.shapes:open_shapes",
            summary="drawn coloured shapes with captions; combinations held out; needs no download",
        ),
        DatasetSpec(
            name="emoji",
            open="zoo.data.emoji:open_emoji",
            summary="Twemoji pictures with their names (CC BY 4.0)",
            needs="emoji",
        ),
        DatasetSpec(
            name="folder",
            open="zoo.data.folder:open_folder",
            summary="your own pictures: folder:PATH, captions beside them or subfolders as labels",
        ),
        *(
            DatasetSpec(name=name, open=f"zoo.data.{module}", summary=f"{what}, from local files: {name}:PATH")
            for name, module, what in (
                ("mnist", "mnist:open_mnist", "handwritten digits"),
                ("fashion-mnist", "mnist:open_fashion", "pieces of clothing in ten classes"),
                ("cifar10", "cifar:open_cifar10", "photos of ten classes"),
                ("cifar100", "cifar:open_cifar100", "photos of a hundred classes"),
            )
        ),
        EngineSpec(name="torch", build="zoo.train.engine:TorchEngine", summary="one process, plain torch"),
        EngineSpec(name="double", build="zoo.train.double:DoubleEngine", summary="plain torch in fp64, for checks"),
    ]
