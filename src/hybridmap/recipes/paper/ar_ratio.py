"""Table 3: how many patches should AR hide? Of 196, the last n in row order, or n places of shift; AR as in Table 1."""

from collections.abc import Iterator

from hybridmap.recipes.paper.pilot import SHIFT, TAIL, VIM
from hybridmap.recipes.table import PAPER, Row, Table


def _rows() -> Iterator[Row]:
    for n in (1, 20, 40, 60, 100, 140):
        label, paper = f"{n} of 196", (f"t3-n{n}",)
        yield Row(label=label, changes={**PAPER, "learner.masking.count": n}, paper=paper, note=TAIL)
        shifted = {**PAPER, "learner.count": n}
        yield Row(label=f"{label}, shift", base="ar-shift-vim-base", changes=shifted, paper=paper, note=SHIFT)


TABLE = Table(number="T3", title="Masked tokens in AR pretraining", base="ar-vim-base", then=VIM, rows=tuple(_rows()))
