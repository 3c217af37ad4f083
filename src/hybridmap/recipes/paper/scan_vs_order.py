"""Table 2: must the order of prediction be the order of the scan? R is row by row, C column by column; AR as in Table 1."""

from hybridmap.recipes.paper.pilot import AR, VIM
from hybridmap.recipes.table import SCRATCH, Row, Table

COLUMNS = {**AR, "learner.regions.type": "Columns"}
BY_COLUMN = {"scan": "column"}

TABLE = Table(
    number="T2",
    title="AR order against scan order",
    base="map-vim-base",
    then=VIM,
    rows=(
        Row(label="Vim(R)", base=SCRATCH, paper=("t2-r",)),
        Row(label="Vim(R) + AR(C)", changes=COLUMNS, paper=("t2-r-arc",)),
        Row(label="Vim(R) + AR(R)", changes=AR, paper=("t2-r-arr",)),
        Row(label="Vim(C)", base=SCRATCH, network=BY_COLUMN, paper=("t2-c",)),
        Row(label="Vim(C) + AR(C)", changes=COLUMNS, network=BY_COLUMN, paper=("t2-c-arc",)),
        Row(label="Vim(C) + AR(R)", changes=AR, network=BY_COLUMN, paper=("t2-c-arr",)),
    ),
)
