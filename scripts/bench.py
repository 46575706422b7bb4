"""Measure the zoo against its peers: `python scripts/bench.py [NAME ...] [--json]`.

Ours and the peer's alternate in one run; the ratio is what counts. Needs `pip install 'image-zoo[bench]'`.
"""

import sys

from zoo.bench.command import main

if __name__ == "__main__":
    sys.exit(main())
