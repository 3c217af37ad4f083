"""Table 3: how many patches should AR hide? Of 196, the last n in row order; AR as in Table 1."""

from hybridmap.recipes.paper.pilot import AR, VIM
from hybridmap.recipes.table import Row, Table

TABLE = Table(
    number="T3",
    title="Masked tokens in AR pretraining",
    base="map-vim-base",
    then=VIM,
    rows=tuple(
        Row(label=f"{n} of 196", changes={**AR, "learner.masking.count": n}, paper=(f"t3-n{n}",))
        for n in (1, 20, 40, 60, 100, 140)
    ),
)
