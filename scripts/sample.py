"""Sample a trained run: `python scripts/sample.py RUN PROMPT...`; the same as `zoo sample`."""

import sys

from zoo.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
