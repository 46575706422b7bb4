"""Judge a trained run: `python scripts/evaluate.py RUN`; the same as `zoo evaluate`."""

import sys

from zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
