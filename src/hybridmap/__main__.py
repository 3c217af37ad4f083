"""``python -m hybridmap X`` and ``torchrun -m hybridmap X`` are ``hybridmap X``."""

from __future__ import annotations

import sys

from hybridmap.cli import main

if __name__ == "__main__":
    sys.exit(main())
