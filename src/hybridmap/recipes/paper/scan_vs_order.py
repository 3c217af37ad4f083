"""Table 2: must the order of prediction be the order of the scan? R is row by row, C column by column; AR as in Table 1.

With shift, a crossing leaves little to look at: a query may use only features that have met nothing it must not know.
"""

from collections.abc import Iterator

from hybridmap.recipes.paper.pilot import SHIFT, TAIL, VIM
from hybridmap.recipes.table import PAPER, SCRATCH, Row, Table


def _rows() -> Iterator[Row]:
    for scan in ("row", "column"):
        network, letter = {"scan": scan}, scan[0]
        name = f"Vim({letter.upper()})"
        yield Row(label=name, base=SCRATCH, network=network, paper=(f"t2-{letter}",))
        for order, regions in (("r", "Rows"), ("c", "Columns")):
            label, id = f"{name} + AR({order.upper()})", f"t2-{letter}-ar{order}"
            changes = {**PAPER, "learner.regions.type": regions}
            yield Row(label=label, network=network, changes=changes, paper=(id,), note=TAIL)
            shifted = f"{label}, shift"
            yield Row(label=shifted, base="ar-shift-vim-base", network=network, changes=changes, paper=(id,), note=SHIFT)


TABLE = Table(number="T2", title="AR order against scan order", base="ar-vim-base", then=VIM, rows=tuple(_rows()))
