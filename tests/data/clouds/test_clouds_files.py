"""Any folder of meshes and clouds: all six formats, classes and splits, broken files, and files that mean harm."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hybridmap.data.base import UnreadableImage
from hybridmap.data.clouds import CloudFiles
from hybridmap.errors import UserError

CORNERS = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0], [0, 0, 4.0]])
FACES = ((0, 1, 2), (0, 2, 3), (0, 3, 4))
AREAS = (1.0, 1.0, 2.0)


def off() -> str:
    """With the counts in the line of the word, as some of ModelNet's files have them."""
    rows = [" ".join(map(str, row)) for row in CORNERS] + [f"3 {a} {b} {c}" for a, b, c in FACES]
    return f"OFF{len(CORNERS)} {len(FACES)} 0\n" + "\n".join(rows) + "\n"


def obj(head: str = "") -> str:
    rows = [f"v {x} {y} {z}" for x, y, z in CORNERS] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in FACES]
    return head + "\n".join(rows) + "\n"


def ply(corners: np.ndarray = CORNERS, faces: tuple = FACES) -> str:
    lines = ["ply", "format ascii 1.0", f"element vertex {len(corners)}", *(f"property float {axis}" for axis in "xyz")]
    if faces:
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    rows = [" ".join(map(str, row)) for row in corners] + [f"3 {a} {b} {c}" for a, b, c in faces]
    return "\n".join([*lines, "end_header", *rows]) + "\n"


def stl() -> str:
    rows = ["solid one"]
    for face in FACES:
        rows += ["facet normal 0 0 1", "outer loop", *(f"vertex {x} {y} {z}" for x, y, z in CORNERS[list(face)])]
        rows += ["endloop", "endfacet"]
    return "\n".join([*rows, "endsolid one"]) + "\n"


def binary_stl() -> bytes:
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    table = np.zeros(len(FACES), kind)
    table["corners"] = CORNERS[np.array(FACES)]
    return b"\0" * 80 + np.uint32(len(FACES)).tobytes() + table.tobytes()


MESHES = {"a.off": off(), "a.obj": obj(), "a.ply": ply(), "a.stl": stl(), "b.STL": binary_stl()}


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", MESHES)
def test_points_on_a_mesh_are_uniform_by_area_and_always_the_same(tmp_path: Path, name: str) -> None:
    put(tmp_path / name, MESHES[name])
    np.random.seed(1)
    cloud = CloudFiles(str(tmp_path), points=8000).read(0)
    np.random.seed(2)
    assert CloudFiles(str(tmp_path), points=8000).read(0).points.tobytes() == cloud.points.tobytes()
    assert cloud.points.shape == (8000, 3)
    assert cloud.points.dtype == np.float32
    assert cloud.label == -1
    x, _, z = cloud.points.T
    assert (np.isclose(z, 0) | np.isclose(x, 0)).all(), "all lie on the faces"
    assert (z > 1e-6).mean() == pytest.approx(AREAS[2] / sum(AREAS), abs=0.03)


def test_clouds_keep_their_points(tmp_path: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", points)
    np.savetxt(tmp_path / "b.xyz", points, fmt="%.7g")
    np.savetxt(tmp_path / "c.xyz", points, fmt="%.7g", delimiter=",")
    put(tmp_path / "d.ply", ply(points[:, :3], ()))
    source = CloudFiles(str(tmp_path), points=7)
    assert [Path(source.name(k)).name for k in range(4)] == ["a.npy", "b.xyz", "c.xyz", "d.ply"]
    for k in range(4):
        assert source.read(k).points == pytest.approx(points[:, :3], abs=1e-5)


def album(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        put(root / path, f"{number} 0 0\n1 1 1\n")
    return root


def test_first_level_directories_are_classes(tmp_path: Path) -> None:
    root = album(tmp_path, "jar/deep/er/1.xyz", "cup/1.xyz", "cup/2.xyz", ".hidden/1.xyz", "cup/.3.xyz", "cup/notes.txt")
    source = CloudFiles(str(root))
    assert source.classes == ("cup", "jar")
    assert source.paths == ["cup/1.xyz", "cup/2.xyz", "jar/deep/er/1.xyz"]
    assert [source.read(k).label for k in range(3)] == [0, 0, 1]
    album(root, "loose.xyz")
    assert CloudFiles(str(root)).classes is None


@pytest.mark.parametrize(
    "paths",
    [
        ("train/cup/1.xyz", "train/jar/2.xyz", "test/cup/3.xyz"),
        ("training/cup/1.xyz", "training/jar/2.xyz", "val/cup/3.xyz"),
        ("cup/train/1.xyz", "jar/train/2.xyz", "cup/test/3.xyz"),
    ],
)
def test_splits_are_told_by_directories_above_or_below_the_classes(tmp_path: Path, paths: tuple[str, ...]) -> None:
    root = str(album(tmp_path, *paths))
    for split, expected in (("train", [0, 1]), ("test", [0]), ("all", [0, 0, 1])):
        source = CloudFiles(root, split)
        assert source.classes == ("cup", "jar")
        assert sorted(source.label(k) for k in range(len(source))) == expected


def test_without_such_directories_the_same_part_of_each_class_is_held_out(tmp_path: Path) -> None:
    root = str(album(tmp_path, *(f"{name}/{number}.xyz" for name in ("cup", "jar") for number in range(20))))
    train, test = CloudFiles(root, "train"), CloudFiles(root, "test")
    assert [test.label(k) for k in range(len(test))] == [0, 0, 1, 1]
    assert sorted(train.paths + test.paths) == CloudFiles(root).paths
    assert CloudFiles(root, "test").paths == test.paths
    assert len(CloudFiles(root, "test", held_out=0.5)) == 20


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = album(tmp_path / "one", "cup/1.xyz")
    (root / "cup" / "again").symlink_to(root)
    album(tmp_path / "other", "2.xyz")
    (root / "jar").symlink_to(tmp_path / "other")
    assert CloudFiles(str(root)).paths == ["cup/1.xyz", "jar/2.xyz"]


NAN = CORNERS.copy()
NAN[4, 1] = np.nan

BROKEN: dict[str, tuple[str | bytes, str]] = {
    "empty.off": (b"", "the file is empty"),
    "empty.xyz": (" \n", "the file is empty"),
    "words.xyz": ("one two three", "no table of numbers"),
    "ragged.xyz": ("1 2 3\n4 5", "no table of numbers"),
    "flat.xyz": ("1 2\n3 4", "three columns or more"),
    "bytes.xyz": (b"\xff\xfe\x80\x81", "it is no text"),
    "nan.xyz": ("1 2 3\nnan 0 0\ninf 0 0", "2 of its 3 points are not finite"),
    "one.xyz": ("1 2 3\n1 2 3\n1 2 3", "its 3 points all lie at one place"),
    "nothing.off": ("OFF\n0 0 0\n", "neither faces nor points can be read from it"),
    "nothing.obj": ("# no shape\n", "neither faces nor points can be read from it"),
    "nothing.ply": (ply(np.zeros((0, 3)), ()), "neither faces nor points can be read from it"),
    "nothing.stl": ("solid one\nendsolid one\n", "neither faces nor points can be read from it"),
    "garbage.off": ("not an off file", "it is not a whole .off file"),
    "garbage.obj": (b"\x00\x01\x02f 1 2 3\n", ""),
    "garbage.ply": (b"\x80" * 100, "it is not a whole .ply file"),
    "garbage.stl": (b"\x00" * 90, ""),
    "short.stl": (binary_stl()[:-20], "neither faces nor points can be read from it"),
    "outside.off": (off().replace("3 0 3 4", "3 0 3 9"), "it is not a whole .off file"),
    "negative.ply": (ply(faces=((0, 1, 77),)), "it is not a whole .ply file"),
    "nan.ply": (ply(NAN), "not finite"),
    "nan.off": (off().replace("0.0 0.0 4.0", "0.0 nan 4.0"), "not finite"),
    "flat.off": (ply(), "it is not a whole .off file"),
    "point.ply": (ply(CORNERS * 0), "its 3 faces have no area"),
    "line.off": (
        off().replace("0.0 1.0 0.0", "0.0 0.0 0.0").replace("2.0 1.0 0.0", "1.0 0.0 0.0").replace("4.0", "0.0"),
        "no area",
    ),
    "huge.ply": (
        ply().replace("element vertex 5", "element vertex 999999999999"),
        "it is cut off: its header promises 999999999999 points",
    ),
    "huge.off": (off().replace("OFF5", "OFF999999999999"), "it is not a whole .off file"),
    "cut.ply": (ply()[:-8], "it is cut off: its header promises 5 points and 3 faces"),
    "cut.off": (off()[:-8], "it is cut off"),
    "large.off": (off().replace("4.0", "4e300"), "not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_reason(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    path = put(tmp_path / name, content)
    source = CloudFiles(str(tmp_path))
    with pytest.raises(UnreadableImage) as caught:
        source.read(0)
    assert caught.value.path == str(path)
    assert reason in caught.value.reason
    assert "\n" not in caught.value.reason


def test_materials_and_other_files_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "shape.mtl", "newmtl one\nmap_Kd texture.png\n")
    put(tmp_path / "a.obj", obj("mtllib shape.mtl\nusemtl one\n"))
    put(tmp_path / "b.ply", ply().replace("element vertex", "comment TextureFile texture.png\nelement vertex"))
    source = CloudFiles(str(tmp_path), points=10)
    opened, real = [], builtins.open

    def note(file: Any, *rest: Any, **named: Any) -> Any:
        opened.append(str(file))
        return real(file, *rest, **named)

    source.read(0)  # whatever trimesh loads of its own when it is first used
    monkeypatch.setattr(builtins, "open", note)
    for index in range(2):
        assert len(source.read(index).points) == 10
    assert opened == [source.name(0), source.name(1)]


class Evil:
    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path(self.mark),)


def test_an_npy_with_objects_in_it_runs_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([Evil(str(tmp_path / "mark"))]), allow_pickle=True)
    with pytest.raises(UnreadableImage, match="holds Python objects, which could run code"):
        CloudFiles(str(tmp_path)).read(0)
    assert not (tmp_path / "mark").exists()


def test_quads_and_several_objects_in_a_file_are_one_shape(tmp_path: Path) -> None:
    text = "".join(
        f"o part{k}\nv 0 0 {k}\nv 1 0 {k}\nv 1 1 {k}\nv 0 1 {k}\nf {4 * k + 1} {4 * k + 2} {4 * k + 3} {4 * k + 4}\n"
        for k in range(3)
    )
    put(tmp_path / "a.obj", text)
    height = CloudFiles(str(tmp_path), points=3000).read(0).points[:, 2]
    assert np.bincount(height.round().astype(int)) / 3000 == pytest.approx(np.ones(3) / 3, abs=0.04)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"root": ""}, "none was named"),
        ({"root": "{}/nowhere"}, "does not exist"),
        ({"root": "{}/empty"}, r"no meshes or clouds in .*; expected files ending in \.npy \.obj \.off \.ply \.stl \.xyz"),
        ({"root": "{}/few", "split": "train"}, "too few files to be divided"),
        ({"root": "{}/few", "points": 0}, "one point or more"),
        ({"root": "{}/few", "held_out": 1.0}, "held_out"),
    ],
)
def test_impossible_folders_are_refused(tmp_path: Path, fields: dict, told: str) -> None:
    (tmp_path / "empty").mkdir()
    album(tmp_path / "few", "1.xyz")
    with pytest.raises(UserError, match=told):
        CloudFiles(**fields | {"root": fields["root"].format(tmp_path)})


def test_without_trimesh_the_extra_is_named_but_clouds_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "trimesh":
            raise ModuleNotFoundError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    album(tmp_path, "1.xyz")
    assert len(CloudFiles(str(tmp_path)).read(0).points) == 2
    put(tmp_path / "2.off", off())
    with pytest.raises(UserError, match=r"needs trimesh, which is not installed; pip install 'hybridmap\[points\]'"):
        CloudFiles(str(tmp_path))
