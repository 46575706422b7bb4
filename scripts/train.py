"""Train a model of the zoo: `python scripts/train.py --model dalle`; `--help` says the rest.

The same under `python`, `torchrun` and `deepspeed`.
"""

import sys

from zoo.train.options import main

if __name__ == "__main__":
    sys.exit(main())
