"""Table 1: which pretraining suits which backbone?

AR is run in both readings of the paper's text (``hybridmap.recipes.pilot``): "tail" hides the last 40 of 196 patches behind a
token-causal decoder, "shift" predicts each patch from those 40 places before it with a causal encoder. MAE is at its own ratio.
CL is MoCo v2 on crops alone. Rows without pretraining are the fine-tuning recipe from nothing. The paper prints 81.2 here and
79.7 in Table 2 for what seems to be the same run of Vim.
"""

from hybridmap.recipes.table import PAPER, SCRATCH, Row, Table

VIM = ("ft-vim-base",)
TAIL, SHIFT = "our reading: tail", "our second reading: shift"

TABLE = Table(
    number="T1",
    title="Pilot study: pretraining strategy per backbone",
    base="map-vit-base",
    then=("ft-vit-base",),
    rows=(
        Row(label="ViT", base=SCRATCH, paper=("t1-vit",)),
        Row(label="ViT + MAE", base="mae-vit-base", changes=PAPER, paper=("t1-vit-mae",)),
        Row(label="ViT + AR", base="ar-vit-base", changes=PAPER, paper=("t1-vit-ar",), note=TAIL),
        Row(label="ViT + AR, shift", base="ar-shift-vit-base", changes=PAPER, paper=("t1-vit-ar",), note=SHIFT),
        Row(label="ViT + CL", base="moco-vit-base", changes=PAPER, paper=("t1-vit-cl",)),
        Row(label="Vim", base=SCRATCH, then=VIM, paper=("t1-vim",)),
        Row(label="Vim + MAE", base="mae-vim-base", then=VIM, changes=PAPER, paper=("t1-vim-mae",)),
        Row(label="Vim + AR", base="ar-vim-base", then=VIM, changes=PAPER, paper=("t1-vim-ar",), note=TAIL),
        Row(label="Vim + AR, shift", base="ar-shift-vim-base", then=VIM, changes=PAPER, paper=("t1-vim-ar",), note=SHIFT),
        Row(label="Vim + CL", base="moco-vim-base", then=VIM, changes=PAPER, paper=("t1-vim-cl",)),
    ),
)
