"""Parquet files of images, as the Hugging Face hub has them."""

from __future__ import annotations

import builtins
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hybridmap.data import parquet
from hybridmap.data.base import UnreadableImage
from hybridmap.data.parquet import ParquetFiles
from hybridmap.errors import UserError


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, numbers: range, *, names: list[str] | None = None, label: str | None = "label", group: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"image": [{"bytes": png(i), "path": f"{i}.png"} for i in numbers]}
    if label:
        columns[label] = [i % 3 for i in numbers]
    table = pa.table(columns)
    if names:
        features = {"image": {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=group)
    return path


def test_rows_labels_and_names_of_classes_are_read(tmp_path: Path) -> None:
    files = [write(tmp_path / f"train-{k}.parquet", range(10 * k, 10 * k + 10), names=["ant", "bee", "cow"]) for k in range(2)]
    source = ParquetFiles([str(path) for path in files])
    assert len(source) == 20
    assert source.classes == ("ant", "bee", "cow")
    assert source.blocks == (4, 4, 2, 4, 4, 2)
    for i in (19, 0, 7, 10, 3):
        assert bytes(source.read(i)) == png(i)
        assert source.label(i) == i % 3
    assert source.name(13) == f"{tmp_path}/train-1.parquet, row 3"
    assert source.stable_name(13) == "/train-1.parquet, row 3"


def test_without_names_the_classes_are_numbers_over_all_splits(tmp_path: Path) -> None:
    train, test = write(tmp_path / "a.parquet", range(2)), write(tmp_path / "b.parquet", range(3))
    assert ParquetFiles([str(train)], [str(test)]).classes == ("0", "1", "2")
    bare = write(tmp_path / "c.parquet", range(3), label=None)
    source = ParquetFiles([str(bare)])
    assert source.classes is None
    assert source.label(0) == -1


def test_a_plain_column_of_bytes_will_do(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpg": [png(i) for i in range(3)], "cls": [0, 1, 0]}), tmp_path / "a.parquet")
    source = ParquetFiles([str(tmp_path / "a.parquet")])
    assert bytes(source.read(2)) == png(2)
    assert [source.label(i) for i in range(3)] == [0, 1, 0]


def test_a_row_without_an_image_is_unreadable(tmp_path: Path) -> None:
    rows = [{"bytes": png(0), "path": None}, {"bytes": None, "path": "elsewhere.png"}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    with pytest.raises(UnreadableImage, match=r"a\.parquet, row 1: the row holds no image"):
        ParquetFiles([str(tmp_path / "a.parquet")]).read(1)


def test_row_groups_that_were_read_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ParquetFiles([str(write(tmp_path / "a.parquet", range(12)))])
    opened = []
    open_ = parquet._open
    monkeypatch.setattr(parquet, "_open", lambda path: opened.append(path) or open_(path))
    monkeypatch.setattr(parquet, "KEPT", 2)
    for i in (0, 5, 1, 6, 3):
        source.read(i)
    assert len(opened) == 2
    source.read(8)
    source.read(0)
    assert len(opened) == 3, "the group that was used last stays"
    source.read(5)
    assert len(opened) == 4


def test_what_is_wrong_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "text.parquet")
    with pytest.raises(UserError, match=r"no column of images; expected .* and found text, label"):
        ParquetFiles([str(tmp_path / "text.parquet")])
    (tmp_path / "cut.parquet").write_bytes(write(tmp_path / "a.parquet", range(3)).read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet is not a whole Parquet file"):
        ParquetFiles([str(tmp_path / "cut.parquet")])
    with pytest.raises(UserError, match=r"gone\.parquet does not exist"):
        ParquetFiles([str(tmp_path / "gone.parquet")])
    empty = pa.table({"image": pa.array([], type=pa.struct([("bytes", pa.binary())]))})
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="no rows in the 1 Parquet files"):
        ParquetFiles([str(tmp_path / "empty.parquet")])
    import_ = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return import_(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"needs pyarrow, which is not installed; pip install 'hybridmap\[parquet\]'"):
        ParquetFiles([str(tmp_path / "a.parquet")])
