"""Table 5: which patches should be hidden, and how many?

Sequential hides the last patches in row order, diagonal the bottom right triangle (our readings of Figure 5; the text defines
neither). With ratio 0 a loss on hidden patches is 0/0: the loss is then on all patches, which is our reading as well.
"""

from hybridmap.recipes.paper.layouts import PAPER_WIDTH, THREE_STAGES
from hybridmap.recipes.table import SCRATCH, Row, Table

TABLE = Table(
    number="T5",
    title="Masking strategy and ratio",
    base="map-base-paper",
    then=("ft-400-base",),
    rows=(
        Row(label="from scratch", base=SCRATCH, then=THREE_STAGES, network=PAPER_WIDTH, paper=("t5-scratch",)),
        Row(label="random, 50 %", paper=("t5-random", "t5-ratio50")),
        Row(label="sequential, 50 %", changes={"learner.masking.type": "Sequential"}, paper=("t5-sequential",)),
        Row(label="diagonal, 50 %", changes={"learner.masking.type": "Diagonal"}, paper=("t5-diagonal",)),
        Row(
            label="random, 0 %",
            changes={"learner.masking.ratio": 0.0, "learner.loss_on": "all"},
            paper=("t5-ratio0",),
            note="our reading: loss on all patches",
        ),
        Row(label="random, 25 %", changes={"learner.masking.ratio": 0.25}, paper=("t5-ratio25",)),
        Row(label="random, 75 %", changes={"learner.masking.ratio": 0.75}, paper=("t5-ratio75",)),
    ),
)
