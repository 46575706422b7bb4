"""Every built-in plugin through the kit that other authors use."""

from zoo import plugins
from zoo.testing import conformance

BUILTIN = [o.name for o in plugins.installed().origins.values() if o.distribution == "image-zoo" and o.name != "zoo"]

test_conformance = conformance(*BUILTIN)
