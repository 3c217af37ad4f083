"""A backbone as a file: what ``torch.export`` saves (.pt2), or ONNX (.onnx). The image size is settled, the batch is left open.

    backbone ──trace──▶ ExportedProgram ─┬─ save_program ─▶ .pt2     our operators whole: needs hybridmap, runs its kernels
                                         └─ save_onnx ────▶ .onnx    standard operators only (hybridmap.ops.onnx): needs nothing

Weights are inside; too large for one .onnx file, they lie beside it in NAME.onnx.data. Each file is compared with the backbone
before it takes its place. float32, inference.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from hybridmap.backbones.base import ImageBackbone
from hybridmap.errors import UserError
from hybridmap.files import replacing_together

Format = Literal["onnx", "pt2"]
TOLERANCE = 1e-4
"""Largest difference between file and backbone in any output."""
LARGEST_INSIDE = 1_500_000_000
"""Bytes of weights inside an .onnx file, which is one message of at most 2^31 - 1 bytes; torch itself keeps to little more."""
EXTRA = "pip install 'hybridmap[export]'"


def trace(backbone: ImageBackbone, size: tuple[int, int], batch: int | None = None) -> ExportedProgram:
    """The graph of ``backbone`` for (batch, in_chans, *size) images, on the device of its parameters; None is any batch."""
    images = _noise(backbone, size, batch or 2)
    with torch.no_grad():
        return torch.export.export(backbone.eval(), (images,), dynamic_shapes=None if batch else ({0: Dim("batch")},))


def check_onnx() -> None:
    """See whether ONNX can be written, before anything is traced.

    Raises:
        UserError: if onnx or onnxscript is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"writing ONNX needs {' and '.join(missing)}, which is not installed; try {EXTRA}, or --format pt2")


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write the .pt2 file; ``import hybridmap`` before ``torch.export.load``, which looks our operators up by name."""
    with path.open("wb") as file:
        torch.export.save(program, file)  # pyright: ignore[reportArgumentType]


def to_onnx(program: ExportedProgram, output: str = "features") -> ONNXProgram:
    """The program in ONNX, with the input ``images`` and one output of that name. The meta device's weights will do for it."""
    from hybridmap.ops.onnx import translations

    # Without the exporter's own optimisation: its pattern rewriting takes minutes for deep networks and gains nothing here.
    made = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=["images"],
        output_names=[output],
        custom_translation_table=translations(),
    )
    assert made is not None
    return made


def save_onnx(program: ExportedProgram, path: Path, output: str = "features") -> None:
    """Write the .onnx file, and beside it ``path`` with ``.data`` appended where the weights take more than LARGEST_INSIDE."""
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    made = to_onnx(program, output)
    fold_constants(made.model)
    remove_unused_nodes(made.model)
    weight = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    made.save(str(path), external_data=weight > LARGEST_INSIDE)


def difference(path: Path, format: Format, backbone: ImageBackbone, size: tuple[int, int], batches: Sequence[int]) -> float:
    """The largest difference in any output between the file and the backbone, over noise in batches of these sizes."""
    run = _runner(path, format)
    found = []
    for batch in batches:
        images = _noise(backbone, size, batch)
        with torch.no_grad():
            expected = backbone.eval()(images)
        found.append((run(images).to(expected) - expected).abs().max())
    return torch.stack(found).max().item()  # which, unlike Python's max, lets no NaN pass


def export(
    backbone: ImageBackbone, output: str | Path, format: Format, size: tuple[int, int], batch: int | None = None
) -> float | None:
    """Write the file and return its ``difference`` from the backbone; None where ONNX was written but cannot be run here.

    Raises:
        UserError: if it differs by more than TOLERANCE, a package is missing, or it cannot be written. What was at ``output``
            before is then still there.
    """
    if format == "onnx":
        check_onnx()
    program = trace(backbone, size, batch)
    with replacing_together(output) as temporary:
        if format == "pt2":
            save_program(program, temporary)
        else:
            save_onnx(program, temporary, "logits" if backbone.num_classes else "features")
            if importlib.util.find_spec("onnxruntime") is None:
                return None
        largest = difference(temporary, format, backbone, size, [batch] if batch else [1, 3])
        if not largest <= TOLERANCE:
            raise UserError(
                f"the {format} file differs from the network by {largest:.1e}, more than {TOLERANCE:.0e}, and was not kept; "
                f"try --format {'onnx' if format == 'pt2' else 'pt2'}"
            )
    return largest


def _noise(backbone: ImageBackbone, size: tuple[int, int], batch: int) -> Float[Tensor, "B C height width"]:
    generator = torch.Generator().manual_seed(batch)
    like = next(backbone.parameters())
    return torch.randn(batch, backbone.config.in_chans, *size, generator=generator).to(like)


def _runner(path: Path, format: Format):
    if format == "pt2":
        with path.open("rb") as file:
            return torch.export.load(file).module()  # pyright: ignore[reportArgumentType]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.cpu().numpy()})[0])
