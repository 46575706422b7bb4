"""The packages here are other people's: they are tested where they are installed (see test_outsiders.py)."""

collect_ignore = ["acme_uniform", "acme_broken"]
