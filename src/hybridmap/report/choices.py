"""Pictures of the choices that make an objective: what is masked, in which order regions are predicted, who may look at whom,
and in which order the backbone scans. Over a photograph, and as small matrices.

    masked_picture      the photograph, masked patches covered
    region_picture      each patch in the colour of its rank; without a photograph as a matrix with its numbers
    scan_picture        a line through the patches in the order of the scan
    reach_picture       the photograph, under a veil where a patch may not look while it is predicted
    permission_picture  the decoder mask as a matrix: row i says where patch i may look

All take values by raster index (``row * columns + column``), as one would write them on the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int, Shaped
from PIL import Image, ImageDraw
from torch import Tensor

from hybridmap.backbones.sequence import SequenceBackbone
from hybridmap.objectives.map import MAP
from hybridmap.report.canvas import (
    HIDDEN,
    INK,
    PAPER,
    PREFIX,
    QUIET,
    Tile,
    along,
    box_of,
    dot,
    fitted,
    font,
    frame,
    legible_on,
    tiles,
)
from hybridmap.report.pictures import Predicts, asked
from hybridmap.tokens.images import partition
from hybridmap.tokens.masking import Diagonal, Masking, Random, Sequential
from hybridmap.tokens.regions import (
    Clusters,
    Columns,
    DecoderMask,
    Regions,
    Rows,
    Single,
    Whole,
    image_grid,
    permission,
)
from hybridmap.tokens.scan import order
from hybridmap.types import Batch, Mask, Patches

_SIDE, _PER_LINE = 176, 5
"""Longer side of a picture in pixels, and pictures in a line: together as wide as the page."""
_STEP = 5
"""The step whose ratio is shown where one is drawn in every step."""
_READABLE = 13
"""Pixels of a patch's side in which a number can be read."""
_MATRIX = (4, 4)
"""Rows and columns of the small matrices."""
_FORBIDDEN = (238, 238, 238)


def masked_picture(
    masked: Bool[Tensor, "N"], grid: tuple[int, int], photo: Image.Image | None = None, side: int = _SIDE
) -> Image.Image:
    """Masked patches covered; without a photograph, on a sheet with this longer side, they are dark and the others blank."""
    canvas = _sheet(grid, side) if photo is None else photo.copy()
    draw = ImageDraw.Draw(canvas)
    for position, hidden in enumerate(masked.tolist()):
        box = _box(position, grid, canvas)
        if photo is None:
            draw.rectangle(box, fill=QUIET if hidden else PAPER, outline=_FORBIDDEN)
        elif hidden:
            draw.rectangle(box, fill=HIDDEN)
    return canvas


def region_picture(
    ranks: Int[Tensor, "N"],
    grid: tuple[int, int],
    photo: Image.Image | None = None,
    masked: Bool[Tensor, "N"] | None = None,
    side: int = _SIDE,
) -> Image.Image:
    """Every patch in the colour of its rank, the first ones dark; masked patches are hatched.

    Over a photograph each region has its rank once, in its middle, and lines around it; without one each patch has it.
    """
    place, highest = _places(ranks)
    listed = place.tolist()
    colours = [along(at / highest) for at in listed]
    canvas = _sheet(grid, side) if photo is None else photo.convert("L").convert("RGB")
    tinted = canvas.copy()
    draw = ImageDraw.Draw(tinted)
    for position, colour in enumerate(colours):
        draw.rectangle(_box(position, grid, canvas), fill=colour, outline=PAPER if photo is None else None)
    canvas = tinted if photo is None else Image.blend(canvas, tinted, 0.6)
    draw = ImageDraw.Draw(canvas)
    for position, hidden in enumerate([] if masked is None else masked.tolist()):
        if hidden:
            _hatch(canvas, _box(position, grid, canvas))
    cell = (canvas.width / grid[1], canvas.height / grid[0])
    if photo is None:
        labels = [(divmod(position, grid[1]), min(cell)) for position in range(len(listed))]
    else:
        _borders(draw, listed, grid, canvas)
        labels = _middles(listed, grid, cell)
    if len(labels) == len(listed) and min(cell) < (_READABLE if photo is None else 2 * _READABLE):
        return canvas  # a number in every patch could not be read
    for (row, column), room in labels:
        rank = str(listed[round(row) * grid[1] + round(column)])
        at, size = ((column + 0.5) * cell[0], (row + 0.5) * cell[1]), max(8, min(16, int(room * 0.55)))
        left, top, right, bottom = draw.textbbox(at, rank, font=font(size), anchor="mm")
        ground = canvas.crop((int(left), int(top), int(right) + 1, int(bottom) + 1)).resize((1, 1), Image.Resampling.BOX)
        ink = legible_on(ground.getpixel((0, 0)))  # pyright: ignore[reportArgumentType]
        edge = {"stroke_width": 1, "stroke_fill": PAPER if ink == INK else INK} if photo is not None and size > 10 else {}
        draw.text(at, rank, fill=ink, font=font(size), anchor="mm", **edge)
    return canvas


def scan_picture(
    sequence: Int[Tensor, "L"],
    grid: tuple[int, int],
    photo: Image.Image | None = None,
    query: tuple[int, int] | None = None,
    side: int = _SIDE,
) -> Image.Image:
    """A line through the patches in the order in which they are scanned, from dark to light.

    ``sequence`` holds the raster index of the patch at each place of the scan, -1 for a prefix token, which is drawn as a red
    dot on the line. ``query`` is the (row, column) of a patch to be framed.
    """
    paper = Image.new("RGB", _sheet(grid, side).size if photo is None else photo.size, PAPER)
    faint = paper if photo is None else Image.blend(photo.convert("L").convert("RGB"), paper, 0.72)
    draw, (rows, columns) = ImageDraw.Draw(faint), grid
    if photo is None:
        for position in range(rows * columns):
            draw.rectangle(_box(position, grid, faint), outline=_FORBIDDEN)
    cell = (faint.width / columns, faint.height / rows)
    order = sequence.tolist()
    points = {
        place: ((source % columns + 0.5) * cell[0], (source // columns + 0.5) * cell[1])
        for place, source in enumerate(order)
        if source >= 0
    }
    places, last = list(points), max(len(order) - 1, 1)
    thick = min(max(2, round(min(cell) / 8)), 5)
    for before, after in pairwise(places):
        draw.line([points[before], points[after]], fill=along(after / last), width=thick)
    for place in places:
        dot(draw, points[place], thick, along(place / last))
    radius = max(3, round(min(cell) / 4))
    for place in (place for place, source in enumerate(order) if source < 0):
        x, y = _beside(place, points, cell)
        dot(draw, (min(max(x, radius), faint.width - radius), min(max(y, radius), faint.height - radius)), radius, PREFIX)
    if query is not None:
        frame(draw, query, grid, faint.size)
    return faint


def reach_picture(allowed: Bool[Tensor, "N"], query: int, grid: tuple[int, int], photo: Image.Image) -> Image.Image:
    """The photograph as the prediction of patch ``query`` (raster index, framed) may use it: a veil lies on what it may not."""
    canvas = photo.copy()
    veiled = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size, HIDDEN), 0.85)
    for position, may in enumerate(allowed.tolist()):
        if not may:
            left, top, right, bottom = _box(position, grid, canvas)
            box = (left, top, right + 1, bottom + 1)
            canvas.paste(veiled.crop(box), box)
    frame(ImageDraw.Draw(canvas), divmod(query, grid[1]), grid, canvas.size)
    return canvas


def permission_picture(allowed: Bool[Tensor, "N N"], ranks: Int[Tensor, "N"], side: int = _SIDE) -> Image.Image:
    """The decoder mask: square (i, j) has the colour of j's rank where patch i may look at patch j while it is predicted.

    It is ``side`` pixels wide; of more patches than that, several share a pixel.
    """
    place, highest = _places(ranks)
    palette = torch.tensor([along(at / highest) for at in place.tolist()], dtype=torch.uint8)
    picture = torch.where(allowed.cpu()[..., None], palette[None], torch.tensor(_FORBIDDEN, dtype=torch.uint8))  # N N 3
    exact = Image.Resampling.NEAREST if len(ranks) <= side else Image.Resampling.BOX
    return Image.fromarray(picture.contiguous().numpy()).resize((side, side), exact)


def relation(objective: Predicts, patches: Patches, mask: Mask) -> Bool[Tensor, "N N"]:
    """Who may look at whom in the objective's decoder, of the first image, between positions of the scan.

    Where the decoder is asked for some patches and looks at visible ones only, all others have nothing.
    """
    count = patches.source.shape[1]
    whole = torch.ones(count, count, dtype=torch.bool, device=patches.source.device)
    allowed = objective.allowed(patches, mask)
    if allowed is None:
        return whole
    if isinstance(objective, MAP):
        return allowed[0, 0]
    whole[:] = False
    whole[asked(objective, patches, mask)[0].nonzero(), mask.visible[0]] = allowed[0, 0]
    return whole


def own_choices(objective: Predicts, image: Float[Tensor, "1 C H W"], photo: Image.Image, *, seed: int = 0) -> Image.Image:
    """The choices of one objective on one normalised image; ``photo`` is the same image to be seen."""
    patches = objective.backbone.partition(image)
    grid = image_grid(patches, "a picture")
    key = torch.zeros(1, dtype=torch.int64, device=image.device)
    mask = objective.draw(patches, Batch(inputs=image, key=key, step_key=seed))
    ranks, allowed = objective.regions(patches, mask)[0], relation(objective, patches, mask)
    photo = photo.resize(fitted(photo.size, _SIDE), Image.Resampling.LANCZOS)
    sequence, masked = patches.source[0], raster(mask.masked[0], patches)
    at = _telling(allowed, asked(objective, patches, mask)[0], patches, grid)
    scanned = "order of the scan" if isinstance(objective.backbone, SequenceBackbone) else "order of units"
    hides = f"{masked.sum()} of {len(masked)} patches"
    if isinstance(objective, MAP):
        hides, relation_name = f"{hides}, {type(objective.masking).__name__}", objective.config.decoder_mask
    else:
        relation_name = type(objective).__name__
    shown = [
        (masked_picture(masked, grid, photo), "hidden from the encoder", hides),
        (
            region_picture(raster(ranks, patches), grid, photo, masked),
            "order of prediction",
            f"{type(objective.regions).__name__}; hidden are hatched",
        ),
        (scan_picture(sequence, grid, photo), scanned, "from dark to light"),
        (permission_picture(allowed, ranks), "who may look at whom", f"{relation_name}; row looks at column"),
        (
            reach_picture(raster(allowed[at], patches), int(sequence[at]), grid, photo),
            "what the frame may look at",
            "all without the veil",
        ),
    ]
    return tiles([[Tile(image=picture, title=f"{title}\n{about}") for picture, title, about in shown]])


def _telling(allowed: Bool[Tensor, "N N"], wanted: Bool[Tensor, "N"], patches: Patches, grid: tuple[int, int]) -> int:
    """Position of a patch whose permission is worth showing: a predicted one that may look at something, if there is one,
    as near to the middle of the image as possible."""
    candidates = allowed.any(1) & wanted
    positions = (candidates if bool(candidates.any()) else ~candidates).nonzero().flatten()
    place = patches.source[0, positions]
    away = (place // grid[1] - grid[0] / 2).square() + (place % grid[1] - grid[1] / 2).square()
    return int(positions[away.argmin()])


MASKINGS: Mapping[str, tuple[Masking.Config, Regions.Config]] = {
    "Random\nhalf of the image": (Random.Config(ratio=0.5), Rows.Config()),
    "Random\nthree quarters": (Random.Config(ratio=0.75), Rows.Config()),
    "Random\nhalf of each row": (Random.Config(ratio=0.5, scope="region"), Rows.Config()),
    "Random\na ratio drawn from 0.3 to 0.7": (Random.Config(ratio=0.5, ratio_range=(0.3, 0.7)), Rows.Config()),
    "Sequential\nhalf, rows": (Sequential.Config(ratio=0.5), Rows.Config()),
    "Sequential\na fifth, rows: the tail": (Sequential.Config(ratio=0.2), Rows.Config()),
    "Sequential\nhalf, columns": (Sequential.Config(ratio=0.5), Columns.Config()),
    "Sequential\nhalf of each row": (Sequential.Config(ratio=0.5, scope="region"), Rows.Config()),
    "Diagonal\nhalf, anti": (Diagonal.Config(ratio=0.5, kind="anti"), Rows.Config()),
    "Diagonal\nhalf, main": (Diagonal.Config(ratio=0.5, kind="main"), Rows.Config()),
}
"""Title -> a masking, and the regions that it goes by."""

REGIONS: Mapping[str, Regions.Config] = {
    "Rows": Rows.Config(),
    "Rows\nreverse": Rows.Config(reverse=True),
    "Columns": Columns.Config(),
    "Columns\nreverse": Columns.Config(reverse=True),
    "Whole\none region": Whole.Config(),
    "Clusters\nsize 2": Clusters.Config(size=2),
    "Clusters\nsize 2, order column": Clusters.Config(size=2, order="column"),
    "Clusters\nsize (2, 4)": Clusters.Config(size=(2, 4)),
    "Single\npatch by patch": Single.Config(),
    "Single\norder column": Single.Config(order="column"),
}
"""Title -> a partition. ``Given`` is left out: it is any of them, written down."""

RELATIONS: Mapping[str, Callable[[Int[Tensor, "N"]], Bool[Tensor, "N N"]]] = {
    "mae\nall": lambda ranks: permission(ranks[None], "mae")[0, 0],
    "local_mae\nown region": lambda ranks: permission(ranks[None], "local_mae")[0, 0],
    "map\nown and earlier regions": lambda ranks: permission(ranks[None], "map")[0, 0],
    "ar\nitself and earlier patches": lambda ranks: permission(ranks[None], "ar")[0, 0],
    "strict\nearlier regions alone": lambda ranks: ranks[None, :] < ranks[:, None],
}
"""Title -> who may look at whom, from ranks. The last is that of objectives which predict from earlier regions, such as ARM's:
the first region has nothing to look at, and is not predicted."""

SCANS = ("row", "column", "cluster(2)", "cluster(4)")


def all_choices(photo: Image.Image, grid: tuple[int, int]) -> dict[str, Image.Image]:
    """Every masking, partition, decoder mask and scan on a photograph cut into ``grid``, with a small matrix of 4 x 4 below."""
    photo = photo.resize(fitted(photo.size, _SIDE), Image.Resampling.LANCZOS)
    large, small = _patches(grid), _patches(_MATRIX)
    rows = Rows.Config().build()(small, None)[0]
    position = grid[0] // 2 * grid[1] + grid[1] // 2
    found = {
        "all_masks": [
            (title, masked_picture(_drawn(how, large), grid, photo), masked_picture(_drawn(how, small), _MATRIX))
            for title, how in MASKINGS.items()
        ],
        "all_regions": [
            (title, region_picture(_ranks(how, large), grid, photo), region_picture(_ranks(how, small), _MATRIX))
            for title, how in REGIONS.items()
        ],
        "all_decoder_masks": [
            (
                title,
                reach_picture(how(_ranks(Rows.Config(), large))[position], position, grid, photo),
                permission_picture(how(rows), rows),
            )
            for title, how in RELATIONS.items()
        ],
        "all_scans": [
            (scan, scan_picture(order(scan, grid), grid, photo), scan_picture(order(scan, _MATRIX), _MATRIX)) for scan in SCANS
        ],
    }
    return {name: _wall(pairs) for name, pairs in found.items()}


def _wall(pairs: Sequence[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """Lines of pictures with their matrices below."""
    lines: list[list[Tile]] = []
    for start in range(0, len(pairs), _PER_LINE):
        line = pairs[start : start + _PER_LINE]
        lines.append([Tile(image=over, title=title) for title, over, _ in line])
        lines.append([Tile(image=matrix) for _, _, matrix in line])
    return tiles(lines)


def decoder_masks(grid: tuple[int, int], side: int = 288) -> dict[str, tuple[Image.Image, Image.Image]]:
    """The four relations of the paper on one grid: title -> (order of prediction, decoder mask)."""
    cases: dict[str, tuple[Regions.Config, DecoderMask]] = {
        "MAE: one region": (Whole.Config(), "mae"),
        "local MAE: own row": (Rows.Config(), "local_mae"),
        "MAP: own and earlier rows": (Rows.Config(), "map"),
        "AR: patch by patch": (Single.Config(), "ar"),
    }
    found = {}
    for title, (regions, kind) in cases.items():
        ranks = _ranks(regions, _patches(grid))
        allowed = permission(ranks[None], kind)[0, 0]
        found[title] = (region_picture(ranks, grid, side=side), permission_picture(allowed, ranks, side))
    return found


def raster(values: Shaped[Tensor, "N"], patches: Patches) -> Shaped[Tensor, "N"]:
    """Values by position in the scan -> by raster index; of the first image."""
    return torch.empty_like(values).index_copy_(0, patches.source[0], values)


def _patches(grid: tuple[int, int]) -> Patches:
    """The patches of a blank image, one pixel each."""
    return partition(torch.zeros(1, 1, *grid), 1)


def _ranks(regions: Regions.Config, patches: Patches) -> Int[Tensor, "N"]:
    return regions.build()(patches, None)[0]


def _drawn(how: tuple[Masking.Config, Regions.Config], patches: Patches) -> Bool[Tensor, "N"]:
    """What a masking hides of one image, by raster index."""
    masking, regions = how[0].build(), how[1].build()
    ranks = regions(patches, None)
    return masking(patches, ranks, regions.sizes(patches), torch.zeros(1, dtype=torch.int64), _STEP).masked[0]


def _places(ranks: Int[Tensor, "N"]) -> tuple[Int[Tensor, "N"], int]:
    """Ranks counted from 0 without gaps, and the highest one, but at least 1."""
    found, place = ranks.cpu().unique(return_inverse=True)
    return place, max(len(found) - 1, 1)


def _middles(place: Sequence[int], grid: tuple[int, int], cell: tuple[float, float]) -> list[tuple[tuple[float, float], float]]:
    """For each region the (row, column) of its middle, or of the patch next to it where another region is there, and the room
    for a number in pixels, for patches ``cell`` (width, height) pixels large."""
    members: dict[int, list[tuple[int, int]]] = {}
    for position, rank in enumerate(place):
        members.setdefault(rank, []).append(divmod(position, grid[1]))
    found = []
    for rank, region in members.items():
        middle = sum(row for row, _ in region) / len(region), sum(column for _, column in region) / len(region)
        own = place[round(middle[0]) * grid[1] + round(middle[1])] == rank
        nearest = min(region, key=lambda at: (at[0] - middle[0]) ** 2 + (at[1] - middle[1]) ** 2)
        high, wide = (len(set(axis)) for axis in zip(*region, strict=True))
        found.append((middle if own else nearest, min(high * cell[1], wide * cell[0])))
    return found


def _borders(draw: ImageDraw.ImageDraw, place: Sequence[int], grid: tuple[int, int], canvas: Image.Image) -> None:
    """Lines between patches of different regions."""
    for position, rank in enumerate(place):
        row, column = divmod(position, grid[1])
        left, top, right, bottom = _box(position, grid, canvas)
        if column + 1 < grid[1] and place[position + 1] != rank:
            draw.line((right, top, right, bottom), fill=PAPER)
        if row + 1 < grid[0] and place[position + grid[1]] != rank:
            draw.line((left, bottom, right, bottom), fill=PAPER)


def _hatch(canvas: Image.Image, box: tuple[int, int, int, int]) -> None:
    """Diagonal lines, continued from patch to patch."""
    left, top, right, bottom = box
    for y in range(top, bottom + 1):
        for x in range(left, right + 1):
            if (x + y) % 5 == 0:
                canvas.putpixel((x, y), PAPER)


def _beside(place: int, points: dict[int, tuple[float, float]], cell: tuple[float, float]) -> tuple[float, float]:
    """Where a prefix token is drawn: half way between its neighbours on the scan, or half a patch before or behind them all."""
    before, after = (points.get(p) for p in (place - 1, place + 1))
    if before and after:
        return (before[0] + after[0]) / 2, (before[1] + after[1]) / 2
    near = before or after or next(iter(points.values()))
    return near[0] + (cell[0] / 2 if before else -cell[0] / 2), near[1]


def _sheet(grid: tuple[int, int], side: int) -> Image.Image:
    """Blank paper for this grid, its longer side about ``side`` pixels, every patch as large as any other."""
    cell = max(1, side // max(grid))
    return Image.new("RGB", (grid[1] * cell, grid[0] * cell), PAPER)


def _box(position: int, grid: tuple[int, int], canvas: Image.Image) -> tuple[int, int, int, int]:
    return box_of(divmod(position, grid[1]), grid, canvas.size)
