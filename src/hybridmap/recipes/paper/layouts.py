"""Table 4: how should Mamba and Transformer layers be mixed? From scratch, base width, 32 layers each.

The paper does not say how these are trained; the three stages of Mamba-R are, whose README the released code names. The MLPs of
T layers have the ratio 1 that reproduces the paper's parameter counts.
"""

from hybridmap.recipes.table import SCRATCH, Row, Table

THREE_STAGES = ("ft-3stage-base", "ft-3stage-base-stage2", "ft-3stage-base-stage3")
PAPER_WIDTH = {"transformer_mlp_ratio": 1.0}

TABLE = Table(
    number="T4",
    title="Hybrid layouts, trained from scratch",
    base=SCRATCH,
    then=THREE_STAGES,
    layers=8,
    rows=tuple(
        Row(label=label, network={**PAPER_WIDTH, "layout": layout}, paper=(id,))
        for label, layout, id in (
            ("32 T (DeiT*)", "T" * 32, "t4-deit"),
            ("32 M (Mamba-R*)", "M" * 32, "t4-mambar"),
            ("24 M, 8 T", "M" * 24 + "T" * 8, "t4-m6t2"),
            ("8 T, 24 M", "T" * 8 + "M" * 24, "t4-t2m6"),
            ("8 x TMMM", "TMMM" * 8, "t4-tmmm"),
            ("8 x MMMT = HybridNet-B", "MMMT" * 8, "t4-mmmt"),
        )
    ),
)
