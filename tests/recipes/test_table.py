"""Cells are what rows, scales and seeds say, and nothing is run twice or passed over in silence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hybridmap.errors import UserError
from hybridmap.recipes import claims, paper, trend
from hybridmap.recipes.table import SCRATCH, Row, Scale, Table, resolve
from hybridmap.tokens.masking import Sequential

TABLES = paper.tables() | claims.GRIDS
ROWS = [(name, row.label) for name, table in TABLES.items() for row in table.rows]


def row_of(name: str, label: str) -> tuple[Table, Row]:
    table = TABLES[name]
    return table, next(row for row in table.rows if row.label == label)


def cell_of(name: str, label: str, scale: Scale = "trend", **more: Any):
    table, row = row_of(name, label)
    return resolve(table, row, scale, **more)


def test_tables_1_to_8_are_found_by_their_files() -> None:
    assert [table.number for table in paper.tables().values()] == [f"T{i}" for i in range(1, 9)]
    assert list(paper.tables())[:3] == ["pilot", "scan_vs_order", "ar_ratio"]
    assert all(table.title for table in paper.tables().values())


def test_every_number_of_the_paper_is_run_or_named_as_quoted() -> None:
    for table in paper.tables().values():
        printed = {number.id for number in paper.reported().values() if number.table == table.number}
        named = {id for row in table.rows for id in row.paper}
        assert named <= printed
        assert printed - named == {number.id for number in paper.quoted(table)}
        if table.number != "T8":
            assert not paper.quoted(table), "the paper ran every row of these tables itself"
    quoted = {number.label for number in paper.quoted(paper.tables()["imagenet"])}
    assert {"ResNet-50", "ARM-B (Mamba+AR)", "MambaR-B"} <= quoted
    assert not [label for label in quoted if "HybridNet" in label or "MAP" in label]


def test_no_row_lacks_a_recipe() -> None:
    assert not {name for table in TABLES.values() for row in table.rows for name in table.missing(row)}


@pytest.mark.parametrize(("name", "label"), ROWS)
def test_every_row_resolves_at_every_scale(name: str, label: str) -> None:
    table, row = row_of(name, label)
    for scale, root in (("smoke", ""), ("trend", ""), ("trend", "photos"), ("full", "photos")):
        cell = resolve(table, row, scale, root=root, seed=3)
        assert cell.seed == 3
        assert {stage.seed for stage in cell.stages} == {3}
        assert cell.pretrained == (table.base_of(row) != SCRATCH)
        networks = [stage.learner.backbone for stage in cell.stages]  # type: ignore[attr-defined]
        assert (
            len({(network.embed_dim, getattr(network, "layout", ""), getattr(network, "scan", "")) for network in networks})
            == 1
        )
        if root:
            data = [stage.data for stage in cell.stages]
            assert {(one.root, one.split) for one in data} == {("photos", "train")}  # type: ignore[attr-defined]


def test_the_key_is_of_what_is_computed_and_of_nothing_else() -> None:
    cell = cell_of("masking", "random, 50 %")
    assert cell.key == cell_of("masking", "random, 50 %").key
    assert cell.key == cell_of("decoder_mask", "MAP").key == cell_of("target", "squared error").key
    assert replace(cell, label="another name").key == cell.key
    others = [
        cell_of("masking", "random, 25 %"),
        cell_of("masking", "random, 50 %", seed=1),
        cell_of("masking", "random, 50 %", "smoke"),
        cell_of("masking", "random, 50 %", root="photos"),
        cell_of("masking", "random, 50 %", budget=replace(trend.CPU_HOUR, finetune_steps=101)),
        replace(cell, exams=cell.exams[:1]),
        replace(cell, stages=cell.stages[1:], pretrained=False),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 1 + len(others)


def test_no_two_rows_of_a_table_are_the_same_run_at_trend_and_full() -> None:
    for name, table in TABLES.items():
        for scale, root in (("trend", ""), ("full", "photos")):
            keys = [resolve(table, row, scale, root=root).key for row in table.rows]  # type: ignore[arg-type]
            sizes_alone = name == "imagenet" and scale == "trend"  # the sizes of one family are one small network there
            assert sizes_alone or len(set(keys)) == len(keys), name


def test_a_row_whose_recipe_does_not_exist_says_so() -> None:
    row = Row(label="to come", base="map-of-tomorrow")
    table = Table(number="", title="t", base="map-base", then=("ft-100-base",), rows=(row,))
    assert table.missing(row) == ("map-of-tomorrow",)
    with pytest.raises(UserError, match="there is no recipe"):
        resolve(table, row, "smoke")


def test_a_number_of_masked_patches_stays_the_same_share() -> None:
    tail = Row(label="tail", changes={"learner.masking.type": "Sequential", "learner.masking.count": 40})
    table = Table(number="", title="t", base="map-base", then=("ft-100-base",), rows=(tail,))
    for scale, patches in (("smoke", 16), ("trend", 64)):
        learner: Any = resolve(table, tail, scale).stages[0].learner  # type: ignore[arg-type]
        assert isinstance(learner.masking, Sequential.Config)
        assert learner.masking.count == round(40 / 196 * patches)
    full: Any = resolve(table, tail, "full", root="photos").stages[0].learner
    assert full.masking.count == 40


def test_layouts_are_told_apart_by_eight_layers() -> None:
    table = TABLES["layouts"]
    layouts = [resolve(table, row, "trend").stages[-1].learner.backbone.layout for row in table.rows]  # type: ignore[attr-defined]
    assert layouts == ["TTTTTTTT", "MMMMMMMM", "MMMMMMTT", "TTMMMMMM", "TMMMTMMM", "MMMTMMMT"]


def test_at_trend_all_objectives_have_one_budget() -> None:
    table = TABLES["objectives"]
    cells = [resolve(table, row, "trend") for row in table.rows]
    firsts = [cell.stages[0] for cell in cells if cell.pretrained]
    assert len({(stage.train, stage.optim, stage.schedule) for stage in firsts}) == 1
    assert len({stage.data.size for stage in firsts}) == 1  # type: ignore[attr-defined]
    assert len({stage.learner.decoder for stage in firsts if hasattr(stage.learner, "decoder")}) == 1
    lasts = [cell.stages[-1] for cell in cells]
    assert len({(stage.train, stage.optim, stage.schedule, stage.data) for stage in lasts}) == 1
    assert all(len(cell.stages) == 1 + cell.pretrained for cell in cells)


def test_a_table_without_sense_is_refused() -> None:
    row = Row(label="a")
    with pytest.raises(ValueError, match="the same label"):
        Table(number="", title="t", base="map-base", then=("ft-100-base",), rows=(row, row))
    with pytest.raises(ValueError, match="does not have"):
        Table(number="", title="t", base=SCRATCH, then=("ft-100-base",), rows=(replace(row, changes={"seed": 1}),))


def test_impossible_scales_are_told_in_a_sentence() -> None:
    table, row = row_of("masking", "random, 50 %")
    with pytest.raises(UserError, match=r"leave --data\.root out"):
        resolve(table, row, "smoke", root="photos")
    with pytest.raises(UserError, match=r"use --data\.root DIR"):
        resolve(table, row, "full")
