"""Table 7: pixels by their squared error, or by a diffusion loss with the decoder's output as its condition?"""

from hybridmap.recipes.paper.layouts import PAPER_WIDTH, THREE_STAGES
from hybridmap.recipes.table import SCRATCH, Row, Table

TABLE = Table(
    number="T7",
    title="Reconstruction target",
    base="map-base-paper",
    then=("ft-400-base",),
    rows=(
        Row(label="from scratch", base=SCRATCH, then=THREE_STAGES, network=PAPER_WIDTH, paper=("t7-scratch",)),
        Row(label="diffusion", base="map-diffusion-base-paper", paper=("t7-diffusion",)),
        Row(label="squared error", paper=("t7-mse",)),
    ),
)
