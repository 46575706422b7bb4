"""A plugin that fails at import, on purpose."""

ZOO_API = 1

raise RuntimeError("the flux capacitor\nis missing")
