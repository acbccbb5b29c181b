"""A pen for flat drawings: polygons, curves and bands, put on a canvas through an affine view.

A drawing has the coordinates x -1..1 (left to right), y -1.3..1.3 (top to bottom). The pen turns, tilts and scales
them, so that every view of a product is the same drawing seen otherwise. Points may be given as SVG writes them,
"0.5,-1 0.5,0.2": a drawing is mostly numbers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = str | Sequence[Point]

INK: Colour = (45, 42, 46)


def points_of(points: Points) -> Sequence[Point]:
    """Points from "x,y x,y …", or as they are."""
    if isinstance(points, str):
        return [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]
    return points


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

    def between(self, low: float, high: float) -> float:
        """A dimension of this product."""
        return self.shape.uniform(low, high)

    def has(self, share: float) -> bool:
        """Whether this product is of those, a share of all, that have some detail."""
        return self.shape.random() < share

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

    def polygon(self, points: Points, fill: Colour, edge: Colour | None = None) -> None:
        """A filled polygon; its edge is a shade darker than the fill unless given."""
        self._fill(self._place(points), fill, edge or mix(fill, INK, 0.45))

    def _fill(self, placed: list[Point], fill: Colour | None, edge: Colour) -> None:
        # Pillow's own wide outline goes through a mask of the whole canvas, at many times the cost of a line.
        if fill is not None:
            self._draw.polygon(placed, fill=fill)
        if edge != fill:
            self._draw.line([*placed, placed[0]], fill=edge, width=2)

    def cloth(self, points: Points, style: Style) -> None:
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

    def smooth(self, points: Points, fill: Colour, edge: Colour | None = None) -> None:
        """A filled closed curve through the points."""
        self.polygon(rounded(points), fill, edge)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, edge: Colour | None = None) -> None:
        """A filled rectangle."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, edge)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour, edge: Colour | None = None) -> None:
        """A filled ellipse about (x, y)."""
        self.polygon(arc(x, y, rx, ry), fill, edge)

    def line(self, points: Points, width: float, fill: Colour) -> None:
        """A line through the points."""
        pixels = max(1, round(width * self._unit))
        joint = "curve" if pixels > 5 else None  # the gaps at the corners of thin lines are not seen
        self._draw.line(self._place(points), fill=fill, width=pixels, joint=joint)

    def curve(self, points: Points, width: float, fill: Colour) -> None:
        """A line through a smooth curve of the points."""
        self.line(rounded(points, closed=False), width, fill)

    def ring(self, x: float, y: float, rx: float, ry: float, width: float, fill: Colour) -> None:
        """The outline of an ellipse, with edges."""
        self._band(arc(x, y, rx, ry, closed=True), width, fill)

    def strap(self, points: Points, width: float, fill: Colour) -> None:
        """A line with edges, through a smooth curve of the points."""
        self._band(rounded(points, closed=False), width, fill)

    def _band(self, curve: Sequence[Point], width: float, fill: Colour) -> None:
        for share, colour in ((1.0, mix(fill, INK, 0.45)), (0.64, fill)):
            self.polygon(band(curve, width * share), colour, colour)

    def _place(self, points: Points) -> list[Point]:
        xx, xy, yx, yy = self._xx, self._xy, self._yx, self._yy
        return [(self._x + xx * x + xy * y, self._y + yx * x + yy * y) for x, y in points_of(points)]


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


def rounded(points: Points, closed: bool = True) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    points = points_of(points)
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


def mirrored(half: Points) -> list[Point]:
    """The right half of an outline, from the top down, completed by its mirror image on the left."""
    half = points_of(half)
    return [*half, *((-x, y) for x, y in reversed(half))]


def both(points: Points) -> tuple[list[Point], list[Point]]:
    """Something on the right side, and on the left before it."""
    right = list(points_of(points))
    return [(-x, y) for x, y in right], right
