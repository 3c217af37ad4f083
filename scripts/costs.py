"""Writes into the recipes' docstrings how long they take, as ``hybridmap.bench.cost`` estimates it.

python scripts/costs.py [GLOB]            rewrites the "Cost:" lines of src/hybridmap/recipes that are estimates, or not known
python scripts/costs.py [GLOB] --check    exit code 1 if one of them would change
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from hybridmap import recipes
from hybridmap.bench.cost import MARK, told


def main(arguments: list[str]) -> int:
    """The code is 1 if a line is not what is estimated now, and only asked about."""
    patterns = [word for word in arguments if not word.startswith("-")] or ["*"]
    wrong = 0
    for entry in (found for pattern in patterns for found in recipes.listing(pattern)):
        if entry.kind == "exam" or not (MARK in entry.cost or entry.cost == "not measured."):
            continue
        cost = told(entry.make(), recipes.find("map-base"))
        if cost == entry.cost:
            continue
        wrong += 1
        print(f"{entry.name}: {entry.cost} -> {cost}")
        if "--check" not in arguments:
            file, documented = Path(inspect.getfile(entry.make)), entry.make.__doc__ or ""
            changed = documented.replace(f"Cost: {entry.cost}", f"Cost: {cost}")
            assert changed != documented, f"the cost of {entry.name} stands on more than one line"
            text = file.read_text()
            head, name, rest = text.partition(f"def {entry.make.__name__}(")
            file.write_text(head + name + rest.replace(documented, changed, 1))
    return int(wrong > 0 and "--check" in arguments)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
