"""Every file that a folder of photographs may hold: it is read rightly, or refused with a reason."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hybridmap.data.base import UnreadableImage
from hybridmap.data.decode import decode, read_file

RED = (200, 30, 40)


def whole(full: tuple[int, int]) -> float:
    """Ask for the image at its own size."""
    return 1.0


def read(path: Path) -> Tensor:
    return decode(str(path), read_file(str(path)), whole).image


def smooth(height: int, width: int) -> np.ndarray:
    """A smooth colour picture (height, width, 3), uint8."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 37) + np.cos(y / 23), np.sin((x + y) / 41), np.cos(x / 53 - y / 29)]
    return np.stack([(w - w.min()) / (w.max() - w.min()) * 255 for w in waves], -1).astype(np.uint8)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif", "ppm"])
def test_every_format_gives_upright_rgb_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"red.{ending}"
    Image.new("RGB", (30, 20), RED).save(path)
    image = read(path)
    assert image.shape == (3, 20, 30)
    assert image.dtype == torch.uint8
    assert (image.float().mean((1, 2)) - torch.tensor(RED)).abs().max() < 4


@pytest.mark.parametrize(
    ("mode", "colour", "ending"),
    [
        ("L", 90, "jpg"),
        ("L", 90, "png"),
        ("1", 1, "png"),
        ("LA", (90, 10), "png"),
        ("RGBA", (*RED, 0), "png"),
        ("CMYK", (55, 225, 215, 0), "jpg"),
        ("CMYK", (55, 225, 215, 0), "tif"),
        ("P", 0, "png"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour, ending: str) -> None:
    path = tmp_path / f"image.{ending}"
    image = Image.new(mode, (24, 16), colour)
    if mode == "P":
        image.putpalette([*RED] + [0] * 765)
    image.save(path)
    grey = {"L": 90, "LA": 90, "1": 255}.get(mode)
    expected = torch.tensor((grey,) * 3 if grey else RED)
    assert (read(path).float().mean((1, 2)) - expected).abs().max() < 4


def test_sixteen_bit_grey_keeps_its_whole_range(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for ending in ("png", "tif"):
        path = tmp_path / f"ramp.{ending}"
        Image.fromarray(ramp).save(path)
        image = read(path)
        assert image.shape == (3, 4, 256)
        assert (image[0, 0].int() - torch.arange(256)).abs().max() <= 1


def test_float_tiff_with_white_at_one_is_not_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "grey.tif")
    assert (read(tmp_path / "grey.tif") == 128).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, ending: str) -> None:
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :24] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / f"turned.{ending}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    image = read(path)
    assert image.shape == (3, 32, 48)
    assert (image.float() - torch.from_numpy(upright.copy()).permute(2, 0, 1)).abs().mean() < 3


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path, ending: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, (0, 255, 0))]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert (read(path).float().mean((1, 2)) - torch.tensor(RED)).abs().max() < 4


def test_one_pixel_is_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), RED).save(tmp_path / "dot.png")
    assert read(tmp_path / "dot.png").flatten().tolist() == list(RED)


def test_large_jpegs_are_decoded_smaller_and_look_the_same(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    Image.fromarray(smooth(960, 1280)).save(path, quality=95)
    asked = []

    def shrink(full: tuple[int, int]) -> float:
        asked.append(full)
        return 8.0

    data = read_file(str(path))
    small, exact = decode(str(path), data, shrink), decode(str(path), data, whole)
    assert set(asked) == {(960, 1280)}
    assert small.image.shape == (3, 240, 320)
    assert small.full == exact.full == (960, 1280)
    reference = torch.nn.functional.interpolate(exact.image[None].float(), (240, 320), mode="area")[0]
    assert (small.image.float() - reference).abs().mean() < 1.0


def test_large_turned_jpegs_report_their_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(smooth(320, 640)).save(tmp_path / "turned.jpg", exif=exif)
    decoded = decode("turned.jpg", read_file(str(tmp_path / "turned.jpg")), lambda full: 4.0)
    assert decoded.full == (640, 320)
    assert decoded.image.shape == (3, 320, 160)


def test_text_named_jpg_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("this is no image")
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        read(tmp_path / "a.jpg")


def test_postscript_named_jpg_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableImage, match="not an image of a known format"):
        read(tmp_path / "a.jpg")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(UnreadableImage, match="the file is empty"):
        read(tmp_path / "a.jpg")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending))
    path = tmp_path / f"cut.{ending}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UnreadableImage) as error:
        read(path)
    assert error.value.path == str(path)
    assert error.value.reason
    assert "bytes not processed" not in error.value.reason


def test_damaged_metadata_does_not_cost_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), RED).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*garbage without end")
    assert read(tmp_path / "a.jpg").shape == (3, 16, 16)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )
    with pytest.raises(UnreadableImage, match="pixels"):
        read(path)


def test_a_large_but_allowed_image_does_not_even_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (50, 30)).save(tmp_path / "wide.png")
    # Pillow warns beyond this number of pixels, and refuses beyond its double.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read(tmp_path / "wide.png").shape == (3, 30, 50)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(UnreadableImage, match="No such file"):
        read(tmp_path / "a.jpg")


def test_a_file_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.chmod(0)
    if os.access(path, os.R_OK):
        # The superuser may read anything; then the refusal is played.
        def refuse(path: str, mode: str) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("hybridmap.data.decode.open", refuse, raising=False)
    with pytest.raises(UnreadableImage, match="Permission denied"):
        read(path)
