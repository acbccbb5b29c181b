"""Pictures of products, drawn: one function a category, for the sample catalogue.

A drawing is a list of flat shapes in the coordinates x -1..1 (left to right), y -1.3..1.3 (top to bottom), put on the
canvas by a `Pen` that turns, tilts and scales them, so that every view of a product is the same drawing seen
otherwise. The dimensions that a product has for its own come from `Style.shape`, a generator seeded by the product.
Some categories are near each other on purpose (shirt and jacket, mug and teapot, hat and cap): their mistakes are
what near-miss metrics are about.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (45, 42, 46)
STEEL: Colour = (176, 180, 186)
GOLD: Colour = (214, 170, 62)
WOOD: Colour = (158, 108, 62)
PAPER: Colour = (246, 243, 234)
CREAM: Colour = (238, 230, 214)
GLASS: Colour = (190, 220, 232)
RUBBER: Colour = (70, 70, 74)


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` with `share` of it replaced by `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


@dataclass
class Style:
    """How one product looks.

    Attributes:
        main: its colour.
        accent: the colour of details, which goes with the brand.
        pattern: "plain", "striped", "dotted" or "checked"; drawn on cloth and on other large surfaces.
        shape: source of the product's own dimensions; every view begins it anew from the same seed.
    """

    main: Colour
    accent: Colour
    pattern: str
    shape: random.Random

    @property
    def dark(self) -> Colour:
        """The main colour in shade."""
        return mix(self.main, (0, 0, 0), 0.35)

    @property
    def light(self) -> Colour:
        """The main colour in light."""
        return mix(self.main, (255, 255, 255), 0.45)


class Pen:
    """Draws in the coordinates of this module onto an image, through an affine view.

    Args:
        canvas: RGB image that is drawn on.
        angle: turn to the right, radians.
        scale: 1 lets a drawing fill the canvas but for a margin.
        tilt: horizontal shear, as a camera from the side gives.
        squeeze: width over height, as a turn away from the camera gives.
        mirrored: left and right exchanged.
        shift: of the centre, in shares of the canvas.
    """

    def __init__(
        self,
        canvas: Image.Image,
        *,
        angle: float = 0.0,
        scale: float = 1.0,
        tilt: float = 0.0,
        squeeze: float = 1.0,
        mirrored: bool = False,
        shift: Point = (0.0, 0.0),
    ) -> None:
        self.canvas = canvas
        self._draw = ImageDraw.Draw(canvas)
        unit = scale * min(canvas.width / 2.25, canvas.height / 2.9)
        wide = unit * squeeze * (-1 if mirrored else 1)
        cos, sin = math.cos(angle), math.sin(angle)
        self._xx, self._xy = cos * wide, (cos * tilt - sin) * unit
        self._yx, self._yy = sin * wide, (sin * tilt + cos) * unit
        self._x = canvas.width * (0.5 + shift[0])
        self._y = canvas.height * (0.5 + shift[1])
        self._unit = unit

    def polygon(self, points: Sequence[Point], fill: Colour, edge: Colour | None = None) -> None:
        """A filled polygon; its edge is a shade darker than the fill unless given."""
        self._fill(self._place(points), fill, edge or mix(fill, INK, 0.45))

    def _fill(self, placed: list[Point], fill: Colour | None, edge: Colour) -> None:
        # Pillow's own wide outline goes through a mask of the whole canvas, at many times the cost of a line.
        if fill is not None:
            self._draw.polygon(placed, fill=fill)
        if edge != fill:
            self._draw.line([*placed, placed[0]], fill=edge, width=2)

    def cloth(self, points: Sequence[Point], style: Style) -> None:
        """A polygon in the main colour and the pattern of the style."""
        self.polygon(points, style.main)
        if style.pattern == "plain":
            return
        placed = self._place(points)
        left, top = (int(min(axis)) for axis in zip(*placed, strict=True))
        right, bottom = (int(max(axis)) + 1 for axis in zip(*placed, strict=True))
        size = (max(1, right - left), max(1, bottom - top))
        mask = Image.new("1", size)
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in placed], fill=1)
        marks = Image.new("1", size)
        _draw_pattern(ImageDraw.Draw(marks), size, style.pattern, 0.17 * self._unit)
        mask.paste(0, mask=Image.eval(marks, lambda on: 0 if on else 255).convert("1"))
        light = sum(style.main) > 620
        self.canvas.paste(style.dark if light else style.light, (left, top), mask)
        self._fill(placed, None, style.dark)

    def smooth(self, points: Sequence[Point], fill: Colour, edge: Colour | None = None) -> None:
        """A filled closed curve through the points."""
        self.polygon(rounded(points), fill, edge)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, edge: Colour | None = None) -> None:
        """A filled rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, edge)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, edge: Colour | None = None) -> None:
        """A filled ellipse about (x, y)."""
        self.polygon(arc(x, y, rx, ry), fill, edge)

    def line(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A line through the points."""
        pixels = max(1, round(width * self._unit))
        joint = "curve" if pixels > 5 else None  # the gaps at the corners of thin lines are not seen
        self._draw.line(self._place(points), fill=fill, width=pixels, joint=joint)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: Colour) -> None:
        """The outline of an ellipse, with edges."""
        self._band(arc(x, y, rx, ry, closed=True), width, fill)

    def strap(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A line with edges, through a smooth curve of the points."""
        self._band(rounded(points, closed=False), width, fill)

    def _band(self, curve: Sequence[Point], width: float, fill: Colour) -> None:
        for share, colour in ((1.0, mix(fill, INK, 0.45)), (0.64, fill)):
            self.polygon(band(curve, width * share), colour, colour)

    def _place(self, points: Iterable[Point]) -> list[Point]:
        return [(self._x + self._xx * x + self._xy * y, self._y + self._yx * x + self._yy * y) for x, y in points]


def _draw_pattern(draw: ImageDraw.ImageDraw, size: tuple[int, int], pattern: str, step: float) -> None:
    width, height = size
    if pattern in ("striped", "checked"):
        for i in range(int(height / step) + 1):
            draw.rectangle((0, (i + 0.25) * step, width, (i + 0.6) * step), fill=1)
    if pattern == "checked":
        for i in range(int(width / step) + 1):
            draw.rectangle(((i + 0.25) * step, 0, (i + 0.6) * step, height), fill=1)
    if pattern == "dotted":
        for row in range(int(height / step) + 1):
            for column in range(int(width / step) + 1):
                x, y = (column + 0.5 * (row % 2)) * step, row * step
                draw.ellipse((x, y, x + 0.5 * step, y + 0.5 * step), fill=1)


def arc(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, closed: bool = False
) -> list[Point]:
    """Points of an elliptic arc; angles in degrees, 0 to the right, 90 down. A full turn repeats no point."""
    steps = max(4, round(28 * abs(end - start) / 360))
    last = steps if closed or abs(end - start) < 360 else steps - 1
    angles = [math.radians(start + (end - start) * i / steps) for i in range(last + 1)]
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


def rounded(points: Sequence[Point], closed: bool = True) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    n = len(points)
    curve: list[Point] = []
    for i in range(n if closed else n - 1):
        if closed:
            p0, p1, p2, p3 = (points[(i + j) % n] for j in (-1, 0, 1, 2))
        else:
            p0, p1, p2, p3 = points[max(i - 1, 0)], points[i], points[i + 1], points[min(i + 2, n - 1)]
        for step in range(5):
            t = step / 5
            a, b, c, d = (
                -0.5 * t + t * t - 0.5 * t**3,
                1 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2 * t * t - 1.5 * t**3,
                -0.5 * t * t + 0.5 * t**3,
            )
            curve.append((a * p0[0] + b * p1[0] + c * p2[0] + d * p3[0], a * p0[1] + b * p1[1] + c * p2[1] + d * p3[1]))
    return curve if closed else [*curve, points[-1]]


def band(curve: Sequence[Point], width: float) -> list[Point]:
    """The outline of a line of some width along a smooth curve."""
    closed = math.dist(curve[0], curve[-1]) < 1e-6
    before, after = (curve[-2], curve[1]) if closed else (curve[0], curve[-1])
    left, right = [], []
    for (x0, y0), (x, y), (x1, y1) in zip([before, *curve], curve, [*curve[1:], after], strict=False):
        length = math.hypot(x1 - x0, y1 - y0) or 1.0
        dx, dy = (y0 - y1) / length * width / 2, (x1 - x0) / length * width / 2
        left.append((x + dx, y + dy))
        right.append((x - dx, y - dy))
    return [*left, *reversed(right)]


def mirrored(half: Sequence[Point]) -> list[Point]:
    """The right half of an outline, from the top down, completed by its mirror image on the left."""
    return [*half, *((-x, y) for x, y in reversed(half))]


# Apparel


def _top(
    pen: Pen, style: Style, sleeve: Point, cuff: Point, armpit: float, hem: float, neck: float, waist: float
) -> None:
    pen.cloth(
        mirrored([(neck, -0.95), (0.5, -0.85), sleeve, cuff, (waist, armpit), (waist, hem)]),
        style,
    )


def t_shirt(pen: Pen, style: Style) -> None:
    """Short sleeves, round neck."""
    hem, sleeve = style.shape.uniform(0.75, 1.0), style.shape.uniform(-0.3, -0.1)
    _top(pen, style, (0.98, sleeve), (0.74, sleeve + 0.22), -0.25, hem, 0.22, 0.5)
    pen.polygon(arc(0, -0.95, 0.22, 0.2, 0, 180), style.dark)
    if style.shape.random() < 0.5:
        pen.ellipse(0, 0.05, 0.18, 0.18, style.accent)


def shirt(pen: Pen, style: Style) -> None:
    """Long sleeves, collar, a row of buttons."""
    hem = style.shape.uniform(0.85, 1.05)
    _top(pen, style, (0.98, 0.62), (0.76, 0.7), -0.2, hem, 0.16, 0.5)
    for side in (-1, 1):
        pen.polygon([(side * 0.98, 0.62), (side * 0.76, 0.7), (side * 0.74, 0.56), (side * 0.95, 0.48)], style.light)
        pen.polygon([(0, -0.68), (side * 0.3, -0.72), (side * 0.2, -1.02), (side * 0.05, -0.96)], style.light)
    pen.line([(0, -0.68), (0, hem)], 0.03, style.dark)
    for i in range(6):
        pen.ellipse(0.0, -0.5 + i * 0.24, 0.035, 0.035, PAPER)
    if style.shape.random() < 0.6:
        pen.box(0.15, -0.35, 0.38, -0.08, style.main)


def sweater(pen: Pen, style: Style) -> None:
    """Long sleeves, ribbed neck, cuffs and hem."""
    hem = style.shape.uniform(0.7, 0.9)
    _top(pen, style, (0.98, 0.6), (0.7, 0.68), -0.15, hem, 0.24, 0.56)
    pen.box(-0.56, hem - 0.02, 0.56, hem + 0.17, style.dark)
    for i in range(9):
        pen.line([(-0.48 + i * 0.12, hem), (-0.48 + i * 0.12, hem + 0.15)], 0.02, style.light)
    for side in (-1, 1):
        pen.polygon([(side * 0.98, 0.6), (side * 0.7, 0.68), (side * 0.72, 0.86), (side * 0.98, 0.78)], style.dark)
    pen.polygon([*arc(0, -0.95, 0.3, 0.28, 0, 180), *arc(0, -0.98, 0.16, 0.14, 180, 0)], style.dark)
    if style.shape.random() < 0.5:
        pen.polygon([(-0.55, 0.1), (0.55, 0.1), (0.55, 0.28), (-0.55, 0.28)], style.accent)


def jacket(pen: Pen, style: Style) -> None:
    """Long sleeves, lapels, zip, two pockets."""
    hem = style.shape.uniform(0.85, 1.05)
    _top(pen, style, (1.0, 0.65), (0.74, 0.74), -0.15, hem, 0.2, 0.58)
    pen.polygon([(-0.1, -0.9), (0.1, -0.9), (0.0, -0.1)], PAPER)
    for side in (-1, 1):
        pen.polygon([(side * 0.12, -1.0), (side * 0.4, -0.75), (side * 0.3, -0.45), (0, 0.0)], style.dark)
        pen.polygon([(side * 0.18, 0.35), (side * 0.46, 0.28), (side * 0.46, 0.36), (side * 0.18, 0.43)], style.dark)
    pen.line([(0, 0), (0, hem)], 0.06, STEEL)
    pen.ellipse(0, 0.05, 0.05, 0.08, style.accent)


def trousers(pen: Pen, style: Style) -> None:
    """Two long legs."""
    flare = style.shape.uniform(0.38, 0.62)
    pen.cloth(
        [
            (-0.42, -1.2),
            (0.42, -1.2),
            (flare + 0.08, 1.2),
            (flare - 0.24, 1.2),
            (0, -0.45),
            (0.24 - flare, 1.2),
            (-flare - 0.08, 1.2),
        ],
        style,
    )
    pen.box(-0.43, -1.22, 0.43, -1.06, style.dark)
    pen.line([(0, -1.05), (0, -0.5)], 0.03, style.dark)
    for side in (-1, 1):
        pen.line([(side * 0.22, -1.04), (side * 0.42, -0.82)], 0.03, style.dark)
    pen.ellipse(0, -1.14, 0.05, 0.05, style.accent)


def shorts(pen: Pen, style: Style) -> None:
    """Two short legs."""
    length, flare = style.shape.uniform(0.35, 0.7), style.shape.uniform(0.7, 0.9)
    pen.cloth(
        [
            (-0.55, -0.75),
            (0.55, -0.75),
            (flare, length),
            (0.14, length + 0.05),
            (0, 0.0),
            (-0.14, length + 0.05),
            (-flare, length),
        ],
        style,
    )
    pen.box(-0.56, -0.78, 0.56, -0.58, style.dark)
    for side in (-1, 1):
        pen.line([(side * 0.06, -0.6), (side * 0.1, -0.25)], 0.04, PAPER)
        pen.line([(side * 0.4, -0.55), (side * 0.62, -0.25)], 0.03, style.dark)


def skirt(pen: Pen, style: Style) -> None:
    """A waistband and a flared, pleated skirt."""
    length, flare = style.shape.uniform(0.55, 1.0), style.shape.uniform(0.65, 0.98)
    pen.cloth([(-0.4, -0.8), (0.4, -0.8), (flare, length), *arc(0, length, flare, 0.14, 0, 180)], style)
    pen.box(-0.41, -0.86, 0.41, -0.68, style.accent)
    for x in (-0.5, -0.18, 0.18, 0.5):
        pen.line([(x * 0.6, -0.6), (x * flare * 1.4, length)], 0.025, style.dark)


def dress(pen: Pen, style: Style) -> None:
    """Straps, a narrow waist, a flared skirt."""
    length, flare = style.shape.uniform(0.95, 1.25), style.shape.uniform(0.55, 0.9)
    for side in (-1, 1):
        pen.line([(side * 0.24, -1.2), (side * 0.28, -0.85)], 0.09, style.dark)
    pen.cloth(mirrored([(0.12, -0.78), (0.33, -0.92), (0.42, -0.55), (0.27, -0.15), (flare, length)]), style)
    pen.polygon([(-0.28, -0.22), (0.28, -0.22), (0.3, -0.08), (-0.3, -0.08)], style.accent)


# Footwear


def sneaker(pen: Pen, style: Style) -> None:
    """Low shoe, thick pale sole, laces."""
    collar = style.shape.uniform(-0.35, -0.15)
    pen.smooth(
        [
            (-0.95, 0.4),
            (-0.98, -0.05),
            (-0.85, collar),
            (-0.45, collar + 0.05),
            (-0.2, -0.12),
            (0.3, 0.1),
            (0.85, 0.2),
            (0.98, 0.42),
        ],
        style.main,
    )
    pen.polygon([(-1.0, 0.36), (0.98, 0.36), (1.0, 0.5), (0.9, 0.6), (-0.95, 0.6), (-1.02, 0.5)], PAPER)
    pen.smooth([(0.62, 0.36), (0.66, 0.18), (0.86, 0.2), (0.98, 0.36)], style.light)
    for i in range(4):
        pen.line([(-0.28 + i * 0.16, -0.14 + i * 0.07), (-0.36 + i * 0.16, 0.04 + i * 0.06)], 0.06, PAPER)
    pen.line(rounded([(-0.75, 0.28), (-0.35, 0.25), (0.1, 0.1)], closed=False), 0.12, style.accent)


def boot(pen: Pen, style: Style) -> None:
    """Shaft above the ankle, heel."""
    top = style.shape.uniform(-1.0, -0.6)
    pen.smooth(
        [
            (-0.65, top),
            (0.0, top + 0.02),
            (0.02, -0.1),
            (0.3, 0.15),
            (0.75, 0.28),
            (0.9, 0.6),
            (0.3, 0.62),
            (-0.66, 0.6),
            (-0.7, 0.0),
        ],
        style.main,
    )
    pen.polygon([(-0.72, 0.56), (0.92, 0.56), (0.92, 0.7), (-0.1, 0.7), (-0.16, 0.8), (-0.72, 0.8)], RUBBER)
    pen.polygon([(-0.68, top), (0.03, top), (0.03, top + 0.16), (-0.68, top + 0.16)], style.dark)
    if style.shape.random() < 0.6:
        for i in range(4):
            pen.line([(-0.18, top + 0.3 + i * 0.16), (0.04, top + 0.26 + i * 0.16)], 0.05, style.accent)
    else:
        pen.line([(-0.62, -0.05), (0.02, -0.12)], 0.08, style.accent)


def heel(pen: Pen, style: Style) -> None:
    """Pump on a thin high heel."""
    height = style.shape.uniform(0.6, 0.85)
    pen.polygon([(-0.82, -0.2), (-0.62, -0.1), (-0.72, height), (-0.8, height)], style.dark)
    pen.smooth(
        [
            (-0.9, -0.45),
            (-0.72, -0.5),
            (-0.5, -0.2),
            (-0.1, 0.2),
            (0.35, height - 0.32),
            (0.8, height - 0.16),
            (0.98, height),
            (0.4, height),
            (0.0, height - 0.2),
            (-0.45, 0.16),
            (-0.85, 0.0),
        ],
        style.main,
    )
    pen.line([(0.98, height), (0.4, height + 0.01), (0.02, height - 0.18)], 0.05, style.accent)


def sandal(pen: Pen, style: Style) -> None:
    """Flat sole, open straps."""
    pen.smooth([(-0.9, 0.45), (-0.4, 0.42), (0.3, 0.5), (0.95, 0.46), (0.95, 0.62), (0.2, 0.66), (-0.92, 0.62)], WOOD)
    front, instep = style.shape.uniform(0.0, 0.2), style.shape.uniform(-0.2, 0.0)
    pen.polygon([(0.3, 0.5), (0.36, front), (0.6, front + 0.08), (0.8, 0.5)], style.main)
    pen.polygon([(-0.22, 0.46), (-0.08, instep), (0.16, instep + 0.06), (0.14, 0.48)], style.main)
    pen.strap([(-0.82, 0.46), (-0.88, 0.05), (-0.8, -0.22)], 0.13, style.main)
    pen.strap([(-0.16, 0.4), (-0.26, 0.05), (-0.42, -0.2)], 0.13, style.main)
    pen.strap([(-0.82, -0.2), (-0.6, -0.3), (-0.4, -0.2)], 0.16, style.dark)
    pen.ellipse(-0.42, -0.19, 0.09, 0.09, style.accent)


def flip_flops(pen: Pen, style: Style) -> None:
    """A pair from above, V straps."""
    width = style.shape.uniform(0.3, 0.38)
    for side in (-1, 1):
        x = side * 0.46
        pen.smooth(
            [
                (x, -0.95),
                (x + width, -0.55),
                (x + width * 0.75, 0.2),
                (x + width * 0.8, 0.75),
                (x, 0.98),
                (x - width * 0.8, 0.75),
                (x - width * 0.75, 0.2),
                (x - width, -0.55),
            ],
            style.main,
        )
        pen.line([(x - width * 0.72, 0.15), (x, -0.55), (x + width * 0.72, 0.15)], 0.11, style.accent)


# Accessories


def handbag(pen: Pen, style: Style) -> None:
    """Wide body, flap, one arched handle."""
    width, top = style.shape.uniform(0.7, 0.95), style.shape.uniform(-0.15, 0.0)
    pen.ring(0, top, width * 0.5, style.shape.uniform(0.55, 0.8), 0.13, style.dark)
    pen.cloth([(-width * 0.85, top), (width * 0.85, top), (width, 0.85), (-width, 0.85)], style)
    pen.polygon(
        [(-width * 0.86, top - 0.02), (width * 0.86, top - 0.02), (width * 0.8, 0.3), (0, 0.48), (-width * 0.8, 0.3)],
        style.dark,
    )
    pen.box(-0.09, 0.34, 0.09, 0.54, style.accent)


def backpack(pen: Pen, style: Style) -> None:
    """Tall rounded body, front pocket, straps at the sides, loop on top."""
    pen.ring(0, -0.88, 0.18, 0.18, 0.1, style.dark)
    for side in (-1, 1):
        pen.strap([(side * 0.45, -0.7), (side * 0.88, -0.2), (side * 0.85, 0.5), (side * 0.6, 0.85)], 0.17, style.dark)
    top = style.shape.uniform(0.5, 0.62)
    pen.cloth(rounded(mirrored([(0.25, -0.95), (top, -0.7), (0.66, 0.0), (0.66, 0.8), (0.5, 0.98)])), style)
    pen.smooth(mirrored([(0.4, 0.12), (0.48, 0.2), (0.48, 0.75), (0.35, 0.85)]), style.dark)
    pen.line(rounded([(-0.52, -0.15), (0, -0.28), (0.52, -0.15)], closed=False), 0.05, style.accent)
    pen.line([(-0.42, 0.3), (0.42, 0.3)], 0.05, style.accent)


def wallet(pen: Pen, style: Style) -> None:
    """Folded, with a clasp and a stitched edge."""
    height = style.shape.uniform(0.5, 0.68)
    pen.smooth([(-0.92, -height), (0.92, -height), (0.96, 0), (0.92, height), (-0.92, height), (-0.96, 0)], style.dark)
    pen.polygon(
        [(-0.9, -height + 0.08), (0.88, -height + 0.08), (0.88, height - 0.02), (-0.9, height - 0.02)], style.main
    )
    pen.line(
        [
            (-0.82, -height + 0.18),
            (0.8, -height + 0.18),
            (0.8, height - 0.12),
            (-0.82, height - 0.12),
            (-0.82, -height + 0.18),
        ],
        0.025,
        style.light,
    )
    pen.polygon([(0.96, -0.16), (0.5, -0.16), (0.42, 0), (0.5, 0.16), (0.96, 0.16)], style.dark)
    pen.ellipse(0.58, 0, 0.08, 0.08, style.accent)


def ring(pen: Pen, style: Style) -> None:
    """A band with a stone."""
    metal = style.shape.choice((GOLD, STEEL))
    width, stone = style.shape.uniform(0.16, 0.26), style.shape.uniform(0.26, 0.4)
    pen.ring(0, 0.3, 0.62, 0.65, width, metal)
    pen.polygon(
        [(-stone, -0.62), (-stone * 0.55, -0.85), (stone * 0.55, -0.85), (stone, -0.62), (0, -0.22)], style.main
    )
    pen.line([(-stone, -0.62), (stone, -0.62)], 0.03, style.light)
    pen.line([(-stone * 0.4, -0.62), (0, -0.24), (stone * 0.4, -0.62)], 0.03, style.light)


def necklace(pen: Pen, style: Style) -> None:
    """An open chain with a pendant."""
    metal = style.shape.choice((GOLD, STEEL))
    drop = style.shape.uniform(0.5, 0.85)
    chain = rounded(
        [(-0.55, -1.1), (-0.8, -0.5), (-0.55, 0.1), (0, drop - 0.2), (0.55, 0.1), (0.8, -0.5), (0.55, -1.1)],
        closed=False,
    )
    pen.line(chain, 0.07, mix(metal, INK, 0.4))
    if style.shape.random() < 0.5:
        for x, y in chain[::3]:
            pen.ellipse(x, y, 0.08, 0.08, metal)
    pen.ellipse(0, drop - 0.12, 0.07, 0.07, metal)
    pen.smooth([(0, drop - 0.08), (0.22, drop + 0.2), (0, drop + 0.42), (-0.22, drop + 0.2)], style.main)


def watch(pen: Pen, style: Style) -> None:
    """A dial with hands between two straps."""
    size, width = style.shape.uniform(0.48, 0.6), style.shape.uniform(0.24, 0.32)
    pen.polygon([(-width, -0.3), (-width * 0.8, -1.2), (width * 0.8, -1.2), (width, -0.3)], style.main)
    pen.polygon([(-width, 0.3), (-width * 0.8, 1.2), (width * 0.8, 1.2), (width, 0.3)], style.main)
    for y in (0.75, 0.9, 1.05):
        pen.ellipse(0, y, 0.03, 0.03, INK)
    pen.box(size - 0.05, -0.07, size + 0.12, 0.07, STEEL)
    pen.ellipse(0, 0, size, size, style.shape.choice((STEEL, GOLD)))
    pen.ellipse(0, 0, size * 0.8, size * 0.8, PAPER)
    for hour in range(0, 360, 30):
        x, y = math.cos(math.radians(hour)), math.sin(math.radians(hour))
        pen.line([(x * size * 0.64, y * size * 0.64), (x * size * 0.74, y * size * 0.74)], 0.04, INK)
    pen.line([(0, 0), (0.0, -size * 0.6)], 0.05, INK)
    pen.line([(0, 0), (size * 0.4, size * 0.1)], 0.06, style.accent)


def _glasses(pen: Pen, style: Style, lens: Colour) -> None:
    width, height = style.shape.uniform(0.36, 0.42), style.shape.uniform(0.26, 0.4)
    for side in (-1, 1):
        pen.strap([(side * 0.86, -0.12), (side * 0.98, -0.32), (side * 0.9, -0.6)], 0.09, style.main)
        x = side * 0.48
        rim = rounded(
            [
                (x - width, -0.18),
                (x, -height * 0.75),
                (x + width, -0.18),
                (x + width * 0.75, height * 0.7),
                (x, height),
                (x - width * 0.75, height * 0.7),
            ]
        )
        pen.polygon(rim, lens, style.main)
        pen.polygon(band([*rim, rim[0]], 0.09), style.main, style.main)
        pen.line([(x - 0.12, 0.05), (x + 0.04, -0.12)], 0.04, PAPER)
    pen.strap([(-0.12, -0.08), (0, -0.16), (0.12, -0.08)], 0.1, style.main)


def sunglasses(pen: Pen, style: Style) -> None:
    """Dark lenses."""
    _glasses(pen, style, style.shape.choice(((52, 50, 58), (84, 62, 48), (50, 72, 84))))


def eyeglasses(pen: Pen, style: Style) -> None:
    """Clear lenses."""
    _glasses(pen, style, (226, 236, 240))


def hat(pen: Pen, style: Style) -> None:
    """A crown with a brim all round and a band."""
    brim, crown = style.shape.uniform(0.85, 1.0), style.shape.uniform(0.42, 0.52)
    pen.ellipse(0, 0.35, brim, 0.28, style.dark)
    pen.smooth(
        [
            (-crown, 0.3),
            (-crown * 0.9, -0.35),
            (-0.15, -0.55),
            (0.15, -0.5),
            (crown * 0.9, -0.35),
            (crown, 0.3),
            (0, 0.42),
        ],
        style.main,
    )
    pen.polygon(
        [
            (-crown * 1.02, 0.1),
            (crown * 1.02, 0.1),
            (crown * 1.04, 0.32),
            *arc(0, 0.3, crown, 0.12, 0, 180),
            (-crown * 1.04, 0.32),
        ],
        style.accent,
    )


def cap(pen: Pen, style: Style) -> None:
    """A round crown with a peak in front."""
    peak = style.shape.uniform(0.85, 1.0)
    pen.smooth(
        [(-0.72, 0.3), (-0.68, -0.2), (-0.35, -0.52), (0.05, -0.52), (0.4, -0.2), (0.46, 0.25), (-0.1, 0.36)],
        style.main,
    )
    pen.smooth([(0.0, 0.28), (0.44, 0.12), (peak, 0.32), (peak, 0.42), (0.5, 0.4), (0.0, 0.42)], style.dark)
    pen.line(rounded([(-0.15, -0.52), (-0.05, -0.1), (-0.02, 0.3)], closed=False), 0.03, style.dark)
    pen.ellipse(-0.15, -0.54, 0.07, 0.05, style.dark)
    pen.ellipse(0.18, -0.08, 0.14, 0.14, style.accent)


def scarf(pen: Pen, style: Style) -> None:
    """A loop with two hanging, fringed ends."""
    left, right = style.shape.uniform(0.7, 1.0), style.shape.uniform(0.7, 1.05)
    for x0, x1, end in ((-0.42, -0.05, left), (0.02, 0.42, right)):
        pen.cloth([(x0 + 0.08, -0.4), (x1 - 0.04, -0.4), (x1, end), (x0, end)], style)
        for i in range(5):
            x = x0 + (i + 0.5) * (x1 - x0) / 5
            pen.line([(x, end), (x, end + 0.18)], 0.04, style.dark)
    pen.cloth(
        rounded([(-0.62, -0.7), (-0.3, -1.0), (0.3, -1.0), (0.62, -0.7), (0.5, -0.35), (0, -0.2), (-0.5, -0.35)]), style
    )
    pen.smooth([(-0.34, -0.72), (0, -0.86), (0.34, -0.72), (0, -0.6)], style.dark)
    pen.box(0.05, right - 0.3, 0.4, right - 0.18, style.accent)


def tie(pen: Pen, style: Style) -> None:
    """A knot and a long blade that ends in a point."""
    width = style.shape.uniform(0.22, 0.36)
    pen.polygon([(-0.2, -1.2), (0.2, -1.2), (0.13, -0.88), (-0.13, -0.88)], style.dark)
    pen.cloth([(-0.12, -0.88), (0.12, -0.88), (width, 0.85), (0, 1.2), (-width, 0.85)], style)
    for y in (-0.2, 0.2, 0.6):
        pen.line([(-0.16 - 0.08 * y, y), (0.16 + 0.08 * y, y + 0.16)], 0.08, style.accent)


def belt(pen: Pen, style: Style) -> None:
    """Rolled up, with a buckle."""
    pen.ring(0, -0.1, 0.85, 0.55, 0.3, style.main)
    pen.ring(0.04, -0.1, 0.52, 0.28, 0.18, style.dark)
    metal = style.shape.choice((GOLD, STEEL))
    size = style.shape.uniform(0.2, 0.28)
    pen.box(-0.95, 0.28, 0.5, 0.62, style.main)
    for i in range(3):
        pen.ellipse(-0.75 + i * 0.18, 0.45, 0.035, 0.035, INK)
    pen.box(0.3, 0.45 - size, 0.75, 0.45 + size, metal)
    pen.box(0.4, 0.45 - size * 0.55, 0.65, 0.45 + size * 0.55, style.accent)


def glove(pen: Pen, style: Style) -> None:
    """Four fingers and a thumb."""
    spread = style.shape.uniform(0.85, 1.1)
    pen.strap([(0.3, 0.35), (0.66, 0.05), (0.82, -0.3)], 0.3, style.main)
    for x, top in ((-0.42, -0.7), (-0.15, -1.02), (0.13, -1.0), (0.4, -0.75)):
        pen.strap([(x * 0.9, 0.2), (x * spread, -0.3), (x * spread * 1.08, top)], 0.27, style.main)
    pen.cloth(
        rounded([(-0.5, -0.15), (0, -0.25), (0.5, -0.12), (0.48, 0.4), (0.4, 0.75), (-0.4, 0.75), (-0.52, 0.4)]), style
    )
    pen.box(-0.46, 0.68, 0.46, 1.0, style.accent)


def umbrella(pen: Pen, style: Style) -> None:
    """Open, with a hooked handle."""
    height = style.shape.uniform(0.75, 0.95)
    pen.line([(0, -0.9), (0, 0.85)], 0.06, INK)
    pen.strap([(0, 0.7), (0.02, 1.0), (0.2, 1.08), (0.32, 0.9)], 0.12, WOOD)
    scallops = [point for i in range(4) for point in arc(0.75 - i * 0.5, 0.02, 0.25, 0.16, 0, -180)]
    pen.cloth([*arc(0, 0.02, 1.0, height, 180, 360), *scallops], style)
    for x in (-0.5, 0.0, 0.5):
        pen.line(rounded([(0, -height), (x * 0.75, -height * 0.6), (x, 0.0)], closed=False), 0.03, style.dark)
    pen.ellipse(0, -height, 0.06, 0.1, style.accent)


# Beauty


def perfume(pen: Pen, style: Style) -> None:
    """A glass bottle, a neck, a cap."""
    width, shoulder = style.shape.uniform(0.5, 0.72), style.shape.uniform(-0.3, -0.1)
    cap_width = style.shape.uniform(0.2, 0.3)
    pen.box(-cap_width, -1.0, cap_width, -0.52, style.accent)
    pen.box(-0.13, -0.54, 0.13, shoulder, GOLD)
    outline = mirrored([(0.18, shoulder), (width, shoulder + 0.12), (width, 0.95)])
    if style.shape.random() < 0.4:
        outline = arc(0, 0.4, width, 0.62)
    pen.polygon(outline, mix(style.main, GLASS, 0.35))
    pen.box(-width * 0.6, 0.25, width * 0.6, 0.65, PAPER)
    pen.line([(-width * 0.35, 0.45), (width * 0.35, 0.45)], 0.05, INK)
    pen.line([(-width * 0.78, 0.1), (-width * 0.78, 0.6)], 0.05, PAPER)


def lipstick(pen: Pen, style: Style) -> None:
    """A slanted stick in a sleeve."""
    width = style.shape.uniform(0.22, 0.3)
    pen.polygon(
        [
            (-width * 0.75, -0.2),
            (-width * 0.75, -0.75),
            (width * 0.2, -1.1),
            (width * 0.75, -0.95),
            (width * 0.75, -0.2),
        ],
        style.main,
    )
    pen.box(-width * 0.9, -0.25, width * 0.9, 0.25, GOLD)
    pen.box(-width * 1.15, 0.2, width * 1.15, 1.1, INK if style.shape.random() < 0.6 else style.accent)
    pen.line([(-width * 0.8, 0.3), (-width * 0.8, 1.0)], 0.05, STEEL)


def nail_polish(pen: Pen, style: Style) -> None:
    """A small squat bottle under a tall cap."""
    width = style.shape.uniform(0.38, 0.5)
    pen.polygon(
        [(-0.17, -1.05), (0.17, -1.05), (0.24, 0.1), (-0.24, 0.1)], INK if style.shape.random() < 0.7 else style.accent
    )
    pen.smooth(mirrored([(0.2, 0.1), (width, 0.25), (width * 1.05, 0.7), (width * 0.9, 0.95), (0.2, 0.98)]), style.main)
    pen.line([(-width * 0.7, 0.35), (-width * 0.7, 0.75)], 0.07, style.light)


# Home


def mug(pen: Pen, style: Style) -> None:
    """A straight cup with a handle."""
    width, height = style.shape.uniform(0.48, 0.6), style.shape.uniform(0.6, 0.8)
    pen.ring(width + 0.08, 0.02, 0.28, 0.36, 0.16, style.main)
    pen.cloth(
        [(-width, -height), (width, -height), (width * 0.95, height), *arc(0, height, width * 0.95, 0.12, 0, 180)],
        style,
    )
    pen.ellipse(0, -height, width, 0.14, style.dark)
    if style.shape.random() < 0.6:
        pen.ellipse(0, 0.1, 0.2, 0.2, style.accent)


def plate(pen: Pen, style: Style) -> None:
    """Round, with a rim."""
    rim = style.shape.uniform(0.6, 0.74)
    pen.ellipse(0, 0, 0.98, 0.98, style.main)
    pen.line(arc(0, 0, 0.9, 0.9, closed=True), 0.05, style.accent)
    pen.ellipse(0, 0, rim, rim, style.light)
    pen.ellipse(0, 0, rim * 0.82, rim * 0.82, mix(style.light, (255, 255, 255), 0.3))


def teapot(pen: Pen, style: Style) -> None:
    """A round body with spout, handle and lid."""
    pen.ring(-0.68, 0.1, 0.28, 0.36, 0.14, style.dark)
    pen.smooth([(0.45, 0.35), (0.75, 0.1), (0.82, -0.25), (1.0, -0.3), (0.92, 0.1), (0.6, 0.6)], style.main)
    height = style.shape.uniform(0.52, 0.66)
    pen.cloth(arc(0, 0.18, 0.66, height), style)
    pen.polygon(arc(0, 0.22 - height, 0.36, 0.2, 180, 360), style.dark)
    pen.ellipse(0, -0.02 - height, 0.1, 0.1, style.accent)
    pen.box(-0.35, 0.1 + height, 0.35, 0.22 + height, style.dark)


def pan(pen: Pen, style: Style) -> None:
    """Round from above, with a long handle."""
    radius = style.shape.uniform(0.58, 0.68)
    pen.line([(0.2, 0.1), (0.78, 0.98)], 0.2, INK)
    pen.line([(0.5, 0.56), (0.76, 0.95)], 0.12, style.accent)
    pen.ellipse(-0.2, -0.32, radius, radius, style.main)
    pen.ellipse(-0.2, -0.32, radius * 0.84, radius * 0.84, (66, 66, 70))
    pen.line(arc(-0.2, -0.32, radius * 0.6, radius * 0.6, 190, 280), 0.04, STEEL)


def chair(pen: Pen, style: Style) -> None:
    """Seat, back and four legs, a little from the side."""
    back = style.shape.uniform(-1.2, -0.9)
    for x, y in ((-0.5, 1.15), (0.3, 1.15), (-0.2, 0.9), (0.55, 0.9)):
        pen.line([(x * 0.95, 0.1), (x, y)], 0.1, WOOD)
    for x in (-0.22, 0.52):
        pen.line([(x, 0.05), (x + 0.04, back)], 0.1, WOOD)
    for i in range(2 + style.shape.randrange(2)):
        y = back + 0.08 + i * 0.3
        pen.polygon([(-0.24, y), (0.58, y), (0.57, y + 0.17), (-0.23, y + 0.17)], style.main)
    pen.cloth([(-0.55, 0.22), (-0.22, -0.02), (0.58, -0.02), (0.38, 0.22)], style)
    pen.polygon([(-0.55, 0.22), (0.38, 0.22), (0.38, 0.33), (-0.55, 0.33)], style.dark)


def table(pen: Pen, style: Style) -> None:
    """A broad top on four legs."""
    height = style.shape.uniform(0.6, 0.85)
    for x, y in ((-0.88, height), (0.72, height), (-0.62, height - 0.22), (0.9, height - 0.22)):
        pen.line([(x, -0.1), (x, y)], 0.11, WOOD)
    pen.cloth([(-0.98, 0.0), (-0.68, -0.32), (1.0, -0.32), (0.82, 0.0)], style)
    pen.polygon([(-0.98, 0.0), (0.82, 0.0), (0.82, 0.13), (-0.98, 0.13)], style.dark)


def sofa(pen: Pen, style: Style) -> None:
    """Back, two seats, arms, short feet."""
    back = style.shape.uniform(-0.6, -0.4)
    for x in (-0.8, 0.8):
        pen.line([(x, 0.5), (x, 0.72)], 0.1, WOOD)
    pen.cloth(rounded([(-0.82, 0.2), (-0.82, back), (0, back - 0.05), (0.82, back), (0.82, 0.2)]), style)
    for x0, x1 in ((-0.7, 0.0), (0.0, 0.7)):
        pen.box(x0, 0.02, x1, 0.3, style.light)
    pen.box(-0.75, 0.28, 0.75, 0.55, style.dark)
    for side in (-1, 1):
        x = side * 0.85
        pen.smooth([(x - 0.15, 0.58), (x - 0.15, -0.1), (x, -0.2), (x + 0.15, -0.1), (x + 0.15, 0.58)], style.main)
    pen.polygon([(-0.5, -0.3), (-0.2, -0.2), (-0.3, 0.1), (-0.6, 0.0)], style.accent)


def lamp(pen: Pen, style: Style) -> None:
    """A shade on a stand."""
    top, bottom = style.shape.uniform(0.28, 0.45), style.shape.uniform(0.6, 0.8)
    pen.line([(0, -0.2), (0, 0.95)], 0.1, style.accent)
    pen.ellipse(0, 1.0, 0.42, 0.13, style.accent)
    pen.ellipse(0, -0.08, 0.13, 0.18, (255, 232, 150))
    pen.cloth([(-top, -1.0), (top, -1.0), (bottom, -0.15), (-bottom, -0.15)], style)


def cushion(pen: Pen, style: Style) -> None:
    """A square with drawn-in sides."""
    pull = style.shape.uniform(0.78, 0.88)
    pen.cloth(
        rounded(
            [(-0.92, -0.92), (0, -pull), (0.92, -0.92), (pull, 0), (0.92, 0.92), (0, pull), (-0.92, 0.92), (-pull, 0)]
        ),
        style,
    )
    if style.shape.random() < 0.6:
        pen.ellipse(0, 0, 0.1, 0.1, style.accent)
    else:
        pen.line(arc(0, 0, 0.4, 0.4, closed=True), 0.06, style.accent)


# Stationery


def book(pen: Pen, style: Style) -> None:
    """A closed volume, its pages and spine seen from the side."""
    width = style.shape.uniform(0.55, 0.7)
    pen.polygon([(-width, 0.85), (-width + 0.2, 1.08), (width + 0.2, 1.08), (width, 0.85)], PAPER)
    pen.polygon([(width, -0.95), (width + 0.2, -0.72), (width + 0.2, 1.08), (width, 0.85)], mix(PAPER, INK, 0.15))
    pen.cloth([(-width, -0.95), (width, -0.95), (width, 0.85), (-width, 0.85)], style)
    pen.box(-width, -0.95, -width + 0.16, 0.85, style.dark)
    pen.box(-width + 0.35, -0.65, width - 0.15, -0.3, PAPER)
    pen.line([(-width + 0.45, -0.48), (width - 0.25, -0.48)], 0.05, INK)
    pen.ellipse(0.08, 0.3, 0.24, 0.24, style.accent)


def notebook(pen: Pen, style: Style) -> None:
    """A cover with a spiral binding."""
    width = style.shape.uniform(0.6, 0.72)
    pen.cloth([(-width, -0.98), (width, -0.98), (width, 0.98), (-width, 0.98)], style)
    if style.shape.random() < 0.5:
        pen.line([(width - 0.15, -0.98), (width - 0.15, 0.98)], 0.07, style.accent)
    else:
        pen.box(-width + 0.35, -0.5, width - 0.2, -0.1, style.accent)
    for i in range(9):
        y = -0.86 + i * 0.215
        pen.ellipse(-width + 0.1, y, 0.045, 0.045, PAPER)
        pen.line(arc(-width, y, 0.12, 0.06, 60, 360), 0.045, INK)


def pencil(pen: Pen, style: Style) -> None:
    """Sharpened at one end, an eraser at the other."""
    width = style.shape.uniform(0.13, 0.19)
    pen.box(-width, -0.72, width, 0.75, style.main)
    pen.line([(-width * 0.3, -0.7), (-width * 0.3, 0.73)], 0.05, style.light)
    pen.box(-width, -0.92, width, -0.7, STEEL)
    pen.smooth([(-width, -0.92), (-width * 0.9, -1.15), (width * 0.9, -1.15), (width, -0.92)], (232, 140, 150))
    pen.polygon([(-width, 0.75), (width, 0.75), (0, 1.25)], (226, 190, 140))
    pen.polygon([(-width * 0.4, 1.05), (width * 0.4, 1.05), (0, 1.27)], INK)


# Electronics


def phone(pen: Pen, style: Style) -> None:
    """A tall slab with a screen."""
    width = style.shape.uniform(0.46, 0.56)
    pen.polygon(_slab(width, 1.05, 0.12), style.main)
    pen.box(-width + 0.07, -0.88, width - 0.07, 0.82, (40, 48, 66))
    for row in range(3):
        for column in range(3):
            x, y = (column - 1) * width * 0.52, -0.55 + row * 0.36
            pen.box(x - 0.08, y - 0.08, x + 0.08, y + 0.08, (style.accent, GLASS, (236, 190, 84))[(row + column) % 3])
    pen.line([(-0.1, -0.96), (0.1, -0.96)], 0.04, INK)
    pen.ellipse(0, 0.94, 0.06, 0.06, style.dark)


def laptop(pen: Pen, style: Style) -> None:
    """An open screen over a keyboard."""
    width = style.shape.uniform(0.7, 0.8)
    pen.polygon([(-width, -0.75), (width, -0.75), (width, 0.22), (-width, 0.22)], style.main)
    pen.box(-width + 0.08, -0.66, width - 0.08, 0.13, (52, 62, 84))
    pen.polygon([(-width + 0.08, 0.13), (-0.15, -0.4), (0.15, -0.1), (0.32, -0.25), (width - 0.08, 0.13)], style.accent)
    pen.polygon([(-width, 0.24), (width, 0.24), (1.0, 0.66), (-1.0, 0.66)], style.light)
    for i in range(3):
        y = 0.31 + i * 0.09
        pen.line([(-width - i * 0.06 + 0.08, y), (width + i * 0.06 - 0.08, y)], 0.05, INK)
    pen.polygon([(-0.22, 0.56), (0.22, 0.56), (0.24, 0.64), (-0.24, 0.64)], style.dark)
    pen.polygon([(-1.0, 0.66), (1.0, 0.66), (0.96, 0.74), (-0.96, 0.74)], style.dark)


def headphones(pen: Pen, style: Style) -> None:
    """A band over two ear cups."""
    height = style.shape.uniform(0.75, 0.95)
    pen.strap(arc(0, 0.15, 0.72, height, 180, 360)[::2], 0.2, style.main)
    for side in (-1, 1):
        x = side * 0.72
        pen.smooth(
            [(x - 0.12, -0.1), (x + 0.12, -0.1), (x + 0.16, 0.3), (x + 0.12, 0.7), (x - 0.12, 0.7), (x - 0.16, 0.3)],
            style.dark,
        )
        pen.smooth(
            [(x + side * 0.1, 0.0), (x + side * 0.28, 0.1), (x + side * 0.28, 0.52), (x + side * 0.1, 0.62)],
            style.accent,
        )


def camera(pen: Pen, style: Style) -> None:
    """A body with a large lens."""
    radius = style.shape.uniform(0.36, 0.44)
    pen.box(-0.3, -0.72, 0.3, -0.4, style.dark)
    pen.box(0.55, -0.58, 0.8, -0.45, style.accent)
    pen.polygon(_slab(0.95, 0.52, 0.1), style.main)
    pen.polygon([(-0.95, -0.25), (0.95, -0.25), (0.95, 0.32), (-0.95, 0.32)], INK)
    for share, fill in ((1.0, STEEL), (0.82, INK), (0.55, (70, 90, 130)), (0.22, GLASS)):
        pen.ellipse(0, 0.02, radius * share, radius * share, fill)
    pen.box(-0.82, -0.46, -0.55, -0.32, (255, 244, 200))


def _slab(width: float, height: float, corner: float) -> list[Point]:
    return mirrored(
        [(width - corner, -height), (width, -height + corner), (width, height - corner), (width - corner, height)]
    )


# Leisure


def guitar(pen: Pen, style: Style) -> None:
    """Waisted body with a hole, neck, head."""
    waist = style.shape.uniform(0.3, 0.38)
    pen.box(-0.08, -1.1, 0.08, 0.4, (92, 62, 40))
    pen.polygon([(-0.14, -1.28), (0.14, -1.28), (0.1, -1.0), (-0.1, -1.0)], style.accent)
    pen.smooth(mirrored([(0.1, -0.18), (0.42, 0.02), (waist, 0.34), (0.6, 0.78), (0.4, 1.15), (0.1, 1.22)]), style.main)
    pen.ellipse(0, 0.42, 0.17, 0.17, INK)
    pen.box(-0.08, -1.05, 0.08, 0.3, (92, 62, 40))
    pen.box(-0.24, 0.84, 0.24, 0.92, INK)
    for x in (-0.04, 0.0, 0.04):
        pen.line([(x, -1.1), (x, 0.86)], 0.015, PAPER)


def ball(pen: Pen, style: Style) -> None:
    """A ball with seams or patches."""
    pen.ellipse(0, 0, 0.9, 0.9, style.main)
    if style.shape.random() < 0.5:
        for x, bend in ((-0.55, 0.5), (0.55, -0.5)):
            pen.line(rounded([(x, -0.7), (x + bend * 0.6, 0), (x, 0.7)], closed=False), 0.05, INK)
        pen.line([(-0.9, 0), (0.9, 0)], 0.05, INK)
        pen.line([(0, -0.9), (0, 0.9)], 0.05, INK)
    else:
        pen.polygon(arc(0, 0, 0.3, 0.3)[::6], style.accent)
        for angle in range(-90, 270, 72):
            x, y = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            pen.line([(x * 0.3, y * 0.3), (x * 0.62, y * 0.62)], 0.05, INK)
            pen.polygon(arc(x * 0.74, y * 0.74, 0.17, 0.17)[::6], style.accent)


def racket(pen: Pen, style: Style) -> None:
    """A strung oval head on a handle."""
    width = style.shape.uniform(0.48, 0.58)
    pen.ellipse(0, -0.48, width, 0.68, CREAM, CREAM)
    for i in range(-3, 4):
        share = math.sqrt(1 - (i / 4) ** 2)
        pen.line([(i * width / 4, -0.48 - 0.68 * share), (i * width / 4, -0.48 + 0.68 * share)], 0.02, (128, 128, 120))
        pen.line([(-width * share, -0.48 + i * 0.17), (width * share, -0.48 + i * 0.17)], 0.02, (128, 128, 120))
    pen.ring(0, -0.48, width, 0.68, 0.14, style.main)
    pen.polygon([(-0.24, 0.12), (-0.07, 0.5), (0.07, 0.5), (0.24, 0.12), (0, 0.24)], style.main)
    pen.box(-0.09, 0.45, 0.09, 1.2, style.accent)


def bicycle(pen: Pen, style: Style) -> None:
    """Two wheels, a frame, saddle and handlebar."""
    radius = style.shape.uniform(0.4, 0.46)
    for x in (-0.55, 0.55):
        pen.line(arc(x, 0.4, radius, radius, closed=True), 0.08, INK)
        for angle in range(0, 180, 45):
            dx, dy = radius * math.cos(math.radians(angle)), radius * math.sin(math.radians(angle))
            pen.line([(x - dx, 0.4 - dy), (x + dx, 0.4 + dy)], 0.015, STEEL)
    frame = [(-0.55, 0.4), (-0.28, -0.2), (0.36, -0.25), (-0.05, 0.4), (-0.55, 0.4)]
    pen.line(frame, 0.1, style.main)
    pen.line([(-0.05, 0.4), (-0.34, -0.38)], 0.09, style.main)
    pen.line([(0.55, 0.4), (0.3, -0.5)], 0.09, style.main)
    pen.line(rounded([(0.3, -0.5), (0.52, -0.6), (0.6, -0.42)], closed=False), 0.08, INK)
    pen.smooth([(-0.55, -0.42), (-0.2, -0.44), (-0.15, -0.36), (-0.5, -0.32)], style.accent)
    pen.ellipse(-0.05, 0.4, 0.1, 0.1, STEEL)


def toy_car(pen: Pen, style: Style) -> None:
    """A car from the side."""
    roof = style.shape.uniform(-0.5, -0.35)
    pen.smooth(
        [
            (-0.95, 0.3),
            (-0.95, 0.02),
            (-0.6, -0.05),
            (-0.4, roof),
            (0.25, roof),
            (0.52, -0.04),
            (0.92, 0.06),
            (0.98, 0.32),
            (0, 0.36),
        ],
        style.main,
    )
    pen.polygon([(-0.48, -0.05), (-0.33, roof + 0.1), (-0.06, roof + 0.1), (-0.06, -0.05)], GLASS)
    pen.polygon([(0.03, -0.05), (0.03, roof + 0.1), (0.2, roof + 0.1), (0.38, -0.05)], GLASS)
    pen.line([(-0.9, 0.14), (0.92, 0.16)], 0.07, style.accent)
    for x in (-0.52, 0.55):
        pen.ellipse(x, 0.36, 0.24, 0.24, RUBBER)
        pen.ellipse(x, 0.36, 0.11, 0.11, STEEL)
    pen.ellipse(0.92, 0.12, 0.06, 0.06, (255, 236, 150))


DRAWINGS: dict[str, Callable[[Pen, Style], None]] = {
    "T-Shirts": t_shirt,
    "Shirts": shirt,
    "Sweaters": sweater,
    "Jackets": jacket,
    "Trousers": trousers,
    "Shorts": shorts,
    "Skirts": skirt,
    "Dresses": dress,
    "Sneakers": sneaker,
    "Boots": boot,
    "Heels": heel,
    "Sandals": sandal,
    "Flip Flops": flip_flops,
    "Handbags": handbag,
    "Backpacks": backpack,
    "Wallets": wallet,
    "Rings": ring,
    "Necklaces": necklace,
    "Watches": watch,
    "Sunglasses": sunglasses,
    "Eyeglasses": eyeglasses,
    "Hats": hat,
    "Caps": cap,
    "Scarves": scarf,
    "Ties": tie,
    "Belts": belt,
    "Gloves": glove,
    "Umbrellas": umbrella,
    "Perfumes": perfume,
    "Lipsticks": lipstick,
    "Nail Polish": nail_polish,
    "Mugs": mug,
    "Plates": plate,
    "Teapots": teapot,
    "Pans": pan,
    "Chairs": chair,
    "Tables": table,
    "Sofas": sofa,
    "Lamps": lamp,
    "Cushions": cushion,
    "Books": book,
    "Notebooks": notebook,
    "Pencils": pencil,
    "Phones": phone,
    "Laptops": laptop,
    "Headphones": headphones,
    "Cameras": camera,
    "Guitars": guitar,
    "Balls": ball,
    "Rackets": racket,
    "Bicycles": bicycle,
    "Toy Cars": toy_car,
}
"""The drawing of each category, by its name."""
