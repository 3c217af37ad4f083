"""Table 6: who may look at whom in the decoder? Half of the patches hidden at random and the same decoder in all rows."""

from hybridmap.recipes.table import Row, Table

TABLE = Table(
    number="T6",
    title="Decoder mask",
    base="map-base-paper",
    then=("ft-400-base",),
    rows=tuple(
        Row(label=label, changes={"learner.decoder_mask": kind}, paper=(f"t6-{kind}",))
        for label, kind in (("AR", "ar"), ("MAE", "mae"), ("local MAE", "local_mae"), ("MAP", "map"))
    ),
)
