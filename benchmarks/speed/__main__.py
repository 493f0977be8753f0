"""`python benchmarks/speed` and `python -m benchmarks.speed`."""

import sys
from pathlib import Path

if not __package__:  # a folder was run: its modules are found from the repository's root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.speed.cli import main

if __name__ == "__main__":
    main()
