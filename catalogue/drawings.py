"""Pictures of products, drawn: one function a category, for the sample catalogue.

A drawing is a list of flat shapes, see `catalogue/pen.py`. The dimensions and details that a product has for its own
come from its `Style`, a generator seeded by the product. Some categories are near each other on purpose (shirt and
jacket, mug and teapot, hat and cap): their mistakes are what near-miss metrics are about.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from catalogue.pen import INK, Colour, Pen, Point, Style, arc, band, both, mirrored, mix, rounded

STEEL: Colour = (176, 180, 186)
GOLD: Colour = (214, 170, 62)
WOOD: Colour = (158, 108, 62)
PAPER: Colour = (246, 243, 234)
CREAM: Colour = (238, 230, 214)
GLASS: Colour = (190, 220, 232)
RUBBER: Colour = (70, 70, 74)

Drawing = Callable[[Pen, Style], None]

DRAWINGS: dict[str, Drawing] = {}
"""The drawing of each category, by its name."""


def draws(category: str) -> Callable[[Drawing], Drawing]:
    """Enters a function as the drawing of a category."""

    def enter(drawing: Drawing) -> Drawing:
        DRAWINGS[category] = drawing
        return drawing

    return enter


def _top(pen: Pen, style: Style, sleeve: str, armpit: float, hem: float, neck: float, waist: float) -> None:
    pen.cloth(mirrored(f"{neck},-0.95 0.5,-0.85 {sleeve} {waist},{armpit} {waist},{hem}"), style)


@draws("T-Shirts")
def _t_shirt(pen: Pen, style: Style) -> None:
    hem, sleeve = style.between(0.75, 1.0), style.between(-0.3, -0.1)
    _top(pen, style, f"0.98,{sleeve} 0.74,{sleeve + 0.22}", -0.25, hem, 0.22, 0.5)
    pen.polygon(arc(0, -0.95, 0.22, 0.2, 0, 180), style.dark)
    if style.has(0.5):
        pen.ellipse(0, 0.05, 0.18, 0.18, style.accent)


@draws("Shirts")
def _shirt(pen: Pen, style: Style) -> None:
    hem = style.between(0.85, 1.05)
    _top(pen, style, "0.98,0.62 0.76,0.7", -0.2, hem, 0.16, 0.5)
    for part in (*both("0.98,0.62 0.76,0.7 0.74,0.56 0.95,0.48"), *both("0,-0.68 0.3,-0.72 0.2,-1.02 0.05,-0.96")):
        pen.polygon(part, style.light)
    pen.line(f"0,-0.68 0,{hem}", 0.03, style.dark)
    for i in range(6):
        pen.ellipse(0, -0.5 + i * 0.24, 0.035, 0.035, PAPER)
    if style.has(0.6):
        pen.box(0.15, -0.35, 0.38, -0.08, style.main)


@draws("Sweaters")
def _sweater(pen: Pen, style: Style) -> None:
    hem = style.between(0.7, 0.9)
    _top(pen, style, "0.98,0.6 0.7,0.68", -0.15, hem, 0.24, 0.56)
    pen.box(-0.56, hem - 0.02, 0.56, hem + 0.17, style.dark)
    for i in range(9):
        pen.line([(-0.48 + i * 0.12, hem), (-0.48 + i * 0.12, hem + 0.15)], 0.02, style.light)
    for cuff in both("0.98,0.6 0.7,0.68 0.72,0.86 0.98,0.78"):
        pen.polygon(cuff, style.dark)
    pen.polygon([*arc(0, -0.95, 0.3, 0.28, 0, 180), *arc(0, -0.98, 0.16, 0.14, 180, 0)], style.dark)
    if style.has(0.5):
        pen.box(-0.55, 0.1, 0.55, 0.28, style.accent)


@draws("Jackets")
def _jacket(pen: Pen, style: Style) -> None:
    hem = style.between(0.85, 1.05)
    _top(pen, style, "1,0.65 0.74,0.74", -0.15, hem, 0.2, 0.58)
    pen.polygon("-0.1,-0.9 0.1,-0.9 0,-0.1", PAPER)
    for part in (*both("0.12,-1 0.4,-0.75 0.3,-0.45 0,0"), *both("0.18,0.35 0.46,0.28 0.46,0.36 0.18,0.43")):
        pen.polygon(part, style.dark)
    pen.line(f"0,0 0,{hem}", 0.06, STEEL)
    pen.ellipse(0, 0.05, 0.05, 0.08, style.accent)


@draws("Trousers")
def _trousers(pen: Pen, style: Style) -> None:
    flare = style.between(0.38, 0.62)
    pen.cloth(mirrored(f"0.42,-1.2 {flare + 0.08},1.2 {flare - 0.24},1.2 0,-0.45"), style)
    pen.box(-0.43, -1.22, 0.43, -1.06, style.dark)
    for seam in ("0,-1.05 0,-0.5", *both("0.22,-1.04 0.42,-0.82")):
        pen.line(seam, 0.03, style.dark)
    pen.ellipse(0, -1.14, 0.05, 0.05, style.accent)


@draws("Shorts")
def _shorts(pen: Pen, style: Style) -> None:
    length, flare = style.between(0.35, 0.7), style.between(0.7, 0.9)
    pen.cloth(mirrored(f"0.55,-0.75 {flare},{length} 0.14,{length + 0.05} 0,0"), style)
    pen.box(-0.56, -0.78, 0.56, -0.58, style.dark)
    for cord, pocket in zip(both("0.06,-0.6 0.1,-0.25"), both("0.4,-0.55 0.62,-0.25"), strict=True):
        pen.line(cord, 0.04, PAPER)
        pen.line(pocket, 0.03, style.dark)


@draws("Skirts")
def _skirt(pen: Pen, style: Style) -> None:
    length, flare = style.between(0.55, 1.0), style.between(0.65, 0.98)
    pen.cloth([(-0.4, -0.8), (0.4, -0.8), (flare, length), *arc(0, length, flare, 0.14, 0, 180)], style)
    pen.box(-0.41, -0.86, 0.41, -0.68, style.accent)
    for x in (-0.5, -0.18, 0.18, 0.5):
        pen.line([(x * 0.6, -0.6), (x * flare * 1.4, length)], 0.025, style.dark)


@draws("Dresses")
def _dress(pen: Pen, style: Style) -> None:
    length, flare = style.between(0.95, 1.25), style.between(0.55, 0.9)
    for strap in both("0.24,-1.2 0.28,-0.85"):
        pen.line(strap, 0.09, style.dark)
    pen.cloth(mirrored(f"0.12,-0.78 0.33,-0.92 0.42,-0.55 0.27,-0.15 {flare},{length}"), style)
    pen.polygon("-0.28,-0.22 0.28,-0.22 0.3,-0.08 -0.3,-0.08", style.accent)


@draws("Sneakers")
def _sneaker(pen: Pen, style: Style) -> None:
    collar = style.between(-0.35, -0.15)
    back = f"-0.95,0.4 -0.98,-0.05 -0.85,{collar} -0.45,{collar + 0.05}"
    pen.smooth(f"{back} -0.2,-0.12 0.3,0.1 0.85,0.2 0.98,0.42", style.main)
    pen.polygon("-1,0.36 0.98,0.36 1,0.5 0.9,0.6 -0.95,0.6 -1.02,0.5", PAPER)
    pen.smooth("0.62,0.36 0.66,0.18 0.86,0.2 0.98,0.36", style.light)
    for i in range(4):
        pen.line([(-0.28 + i * 0.16, -0.14 + i * 0.07), (-0.36 + i * 0.16, 0.04 + i * 0.06)], 0.06, PAPER)
    pen.curve("-0.75,0.28 -0.35,0.25 0.1,0.1", 0.12, style.accent)


@draws("Boots")
def _boot(pen: Pen, style: Style) -> None:
    top = style.between(-1.0, -0.6)
    shaft, foot = f"-0.65,{top} 0,{top + 0.02} 0.02,-0.1", "0.3,0.15 0.75,0.28 0.9,0.6 0.3,0.62 -0.66,0.6 -0.7,0"
    pen.smooth(f"{shaft} {foot}", style.main)
    pen.polygon("-0.72,0.56 0.92,0.56 0.92,0.7 -0.1,0.7 -0.16,0.8 -0.72,0.8", RUBBER)
    pen.box(-0.68, top, 0.03, top + 0.16, style.dark)
    if style.has(0.6):
        for i in range(4):
            pen.line([(-0.18, top + 0.3 + i * 0.16), (0.04, top + 0.26 + i * 0.16)], 0.05, style.accent)
    else:
        pen.line("-0.62,-0.05 0.02,-0.12", 0.08, style.accent)


@draws("Heels")
def _heel(pen: Pen, style: Style) -> None:
    height = style.between(0.6, 0.85)
    pen.polygon(f"-0.82,-0.2 -0.62,-0.1 -0.72,{height} -0.8,{height}", style.dark)
    upper = f"-0.9,-0.45 -0.72,-0.5 -0.5,-0.2 -0.1,0.2 0.35,{height - 0.32} 0.8,{height - 0.16}"
    pen.smooth(f"{upper} 0.98,{height} 0.4,{height} 0,{height - 0.2} -0.45,0.16 -0.85,0", style.main)
    pen.line(f"0.98,{height} 0.4,{height + 0.01} 0.02,{height - 0.18}", 0.05, style.accent)


@draws("Sandals")
def _sandal(pen: Pen, style: Style) -> None:
    pen.smooth("-0.9,0.45 -0.4,0.42 0.3,0.5 0.95,0.46 0.95,0.62 0.2,0.66 -0.92,0.62", WOOD)
    front, instep = style.between(0.0, 0.2), style.between(-0.2, 0.0)
    pen.polygon(f"0.3,0.5 0.36,{front} 0.6,{front + 0.08} 0.8,0.5", style.main)
    pen.polygon(f"-0.22,0.46 -0.08,{instep} 0.16,{instep + 0.06} 0.14,0.48", style.main)
    pen.strap("-0.82,0.46 -0.88,0.05 -0.8,-0.22", 0.13, style.main)
    pen.strap("-0.16,0.4 -0.26,0.05 -0.42,-0.2", 0.13, style.main)
    pen.strap("-0.82,-0.2 -0.6,-0.3 -0.4,-0.2", 0.16, style.dark)
    pen.ellipse(-0.42, -0.19, 0.09, 0.09, style.accent)


@draws("Flip Flops")
def _flip_flops(pen: Pen, style: Style) -> None:
    width = style.between(0.3, 0.38)
    sole: list[Point] = [(0, -0.95), (width, -0.55), (width * 0.75, 0.2), (width * 0.8, 0.75), (0, 0.98)]
    for x in (-0.46, 0.46):
        pen.smooth([(x + dx, y) for dx, y in (*sole, *((-dx, y) for dx, y in sole[-2:0:-1]))], style.main)
        pen.line([(x - width * 0.72, 0.15), (x, -0.55), (x + width * 0.72, 0.15)], 0.11, style.accent)


@draws("Handbags")
def _handbag(pen: Pen, style: Style) -> None:
    width, top = style.between(0.7, 0.95), style.between(-0.15, 0.0)
    pen.ring(0, top, width * 0.5, style.between(0.55, 0.8), 0.13, style.dark)
    pen.cloth(mirrored([(width * 0.85, top), (width, 0.85)]), style)
    pen.polygon(mirrored([(width * 0.86, top - 0.02), (width * 0.8, 0.3), (0, 0.48)]), style.dark)
    pen.box(-0.09, 0.34, 0.09, 0.54, style.accent)


@draws("Backpacks")
def _backpack(pen: Pen, style: Style) -> None:
    pen.ring(0, -0.88, 0.18, 0.18, 0.1, style.dark)
    for strap in both("0.45,-0.7 0.88,-0.2 0.85,0.5 0.6,0.85"):
        pen.strap(strap, 0.17, style.dark)
    pen.cloth(rounded(mirrored(f"0.25,-0.95 {style.between(0.5, 0.62)},-0.7 0.66,0 0.66,0.8 0.5,0.98")), style)
    pen.smooth(mirrored("0.4,0.12 0.48,0.2 0.48,0.75 0.35,0.85"), style.dark)
    pen.curve("-0.52,-0.15 0,-0.28 0.52,-0.15", 0.05, style.accent)
    pen.line("-0.42,0.3 0.42,0.3", 0.05, style.accent)


@draws("Wallets")
def _wallet(pen: Pen, style: Style) -> None:
    height = style.between(0.5, 0.68)
    pen.smooth(mirrored(f"0.92,{-height} 0.96,0 0.92,{height}"), style.dark)
    pen.box(-0.9, -height + 0.08, 0.88, height - 0.02, style.main)
    top, bottom = -height + 0.18, height - 0.12
    pen.line(f"-0.82,{top} 0.8,{top} 0.8,{bottom} -0.82,{bottom} -0.82,{top}", 0.025, style.light)
    pen.polygon("0.96,-0.16 0.5,-0.16 0.42,0 0.5,0.16 0.96,0.16", style.dark)
    pen.ellipse(0.58, 0, 0.08, 0.08, style.accent)


@draws("Rings")
def _ring(pen: Pen, style: Style) -> None:
    metal = style.shape.choice((GOLD, STEEL))
    width, stone = style.between(0.16, 0.26), style.between(0.26, 0.4)
    pen.ring(0, 0.3, 0.62, 0.65, width, metal)
    pen.polygon(mirrored([(stone * 0.55, -0.85), (stone, -0.62), (0, -0.22)]), style.main)
    pen.line([(-stone, -0.62), (stone, -0.62)], 0.03, style.light)
    pen.line([(-stone * 0.4, -0.62), (0, -0.24), (stone * 0.4, -0.62)], 0.03, style.light)


@draws("Necklaces")
def _necklace(pen: Pen, style: Style) -> None:
    metal, drop = style.shape.choice((GOLD, STEEL)), style.between(0.5, 0.85)
    left, right = "-0.55,-1.1 -0.8,-0.5 -0.55,0.1", "0.55,0.1 0.8,-0.5 0.55,-1.1"
    chain = rounded(f"{left} 0,{drop - 0.2} {right}", closed=False)
    pen.line(chain, 0.07, mix(metal, INK, 0.4))
    if style.has(0.5):
        for x, y in chain[::3]:
            pen.ellipse(x, y, 0.08, 0.08, metal)
    pen.ellipse(0, drop - 0.12, 0.07, 0.07, metal)
    pen.smooth(f"0,{drop - 0.08} 0.22,{drop + 0.2} 0,{drop + 0.42} -0.22,{drop + 0.2}", style.main)


@draws("Watches")
def _watch(pen: Pen, style: Style) -> None:
    size, width = style.between(0.48, 0.6), style.between(0.24, 0.32)
    for end in (-1, 1):
        pen.polygon(mirrored([(width, 0.3 * end), (width * 0.8, 1.2 * end)]), style.main)
    for y in (0.75, 0.9, 1.05):
        pen.ellipse(0, y, 0.03, 0.03, INK)
    pen.box(size - 0.05, -0.07, size + 0.12, 0.07, STEEL)
    pen.ellipse(0, 0, size, size, style.shape.choice((STEEL, GOLD)))
    pen.ellipse(0, 0, size * 0.8, size * 0.8, PAPER)
    for x, y in _spokes(12):
        pen.line([(x * size * 0.64, y * size * 0.64), (x * size * 0.74, y * size * 0.74)], 0.04, INK)
    pen.line([(0, 0), (0.0, -size * 0.6)], 0.05, INK)
    pen.line([(0, 0), (size * 0.4, size * 0.1)], 0.06, style.accent)


def _spokes(count: int, start: float = 0) -> list[Point]:
    """Points round the unit circle, the first at `start` degrees."""
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _glasses(pen: Pen, style: Style, lens: Colour) -> None:
    width, height = style.between(0.36, 0.42), style.between(0.26, 0.4)
    for x, temple in zip((-0.48, 0.48), both("0.86,-0.12 0.98,-0.32 0.9,-0.6"), strict=True):
        pen.strap(temple, 0.09, style.main)
        upper = f"{x - width},-0.18 {x},{-height * 0.75} {x + width},-0.18"
        rim = rounded(f"{upper} {x + width * 0.75},{height * 0.7} {x},{height} {x - width * 0.75},{height * 0.7}")
        pen.polygon(rim, lens, style.main)
        pen.polygon(band([*rim, rim[0]], 0.09), style.main, style.main)
        pen.line([(x - 0.12, 0.05), (x + 0.04, -0.12)], 0.04, PAPER)
    pen.strap("-0.12,-0.08 0,-0.16 0.12,-0.08", 0.1, style.main)


@draws("Sunglasses")
def _sunglasses(pen: Pen, style: Style) -> None:
    _glasses(pen, style, style.shape.choice(((52, 50, 58), (84, 62, 48), (50, 72, 84))))


@draws("Eyeglasses")
def _eyeglasses(pen: Pen, style: Style) -> None:
    _glasses(pen, style, (226, 236, 240))


@draws("Hats")
def _hat(pen: Pen, style: Style) -> None:
    brim, crown = style.between(0.85, 1.0), style.between(0.42, 0.52)
    pen.ellipse(0, 0.35, brim, 0.28, style.dark)
    left, right = f"{-crown},0.3 {-crown * 0.9},-0.35 -0.15,-0.55", f"0.15,-0.5 {crown * 0.9},-0.35 {crown},0.3"
    pen.smooth(f"{left} {right} 0,0.42", style.main)
    ends = [(crown * 1.04, 0.32), *arc(0, 0.3, crown, 0.12, 0, 180), (-crown * 1.04, 0.32)]
    pen.polygon([(-crown * 1.02, 0.1), (crown * 1.02, 0.1), *ends], style.accent)


@draws("Caps")
def _cap(pen: Pen, style: Style) -> None:
    peak = style.between(0.85, 1.0)
    pen.smooth("-0.72,0.3 -0.68,-0.2 -0.35,-0.52 0.05,-0.52 0.4,-0.2 0.46,0.25 -0.1,0.36", style.main)
    pen.smooth(f"0,0.28 0.44,0.12 {peak},0.32 {peak},0.42 0.5,0.4 0,0.42", style.dark)
    pen.curve("-0.15,-0.52 -0.05,-0.1 -0.02,0.3", 0.03, style.dark)
    pen.ellipse(-0.15, -0.54, 0.07, 0.05, style.dark)
    pen.ellipse(0.18, -0.08, 0.14, 0.14, style.accent)


@draws("Scarves")
def _scarf(pen: Pen, style: Style) -> None:
    left, right = style.between(0.7, 1.0), style.between(0.7, 1.05)
    for x0, x1, end in ((-0.42, -0.05, left), (0.02, 0.42, right)):
        pen.cloth([(x0 + 0.08, -0.4), (x1 - 0.04, -0.4), (x1, end), (x0, end)], style)
        for i in range(5):
            x = x0 + (i + 0.5) * (x1 - x0) / 5
            pen.line([(x, end), (x, end + 0.18)], 0.04, style.dark)
    pen.cloth(rounded("-0.62,-0.7 -0.3,-1 0.3,-1 0.62,-0.7 0.5,-0.35 0,-0.2 -0.5,-0.35"), style)
    pen.smooth("-0.34,-0.72 0,-0.86 0.34,-0.72 0,-0.6", style.dark)
    pen.box(0.05, right - 0.3, 0.4, right - 0.18, style.accent)


@draws("Ties")
def _tie(pen: Pen, style: Style) -> None:
    width = style.between(0.22, 0.36)
    pen.polygon(mirrored("0.2,-1.2 0.13,-0.88"), style.dark)
    pen.cloth(f"-0.12,-0.88 0.12,-0.88 {width},0.85 0,1.2 {-width},0.85", style)
    for y in (-0.2, 0.2, 0.6):
        pen.line([(-0.16 - 0.08 * y, y), (0.16 + 0.08 * y, y + 0.16)], 0.08, style.accent)


@draws("Belts")
def _belt(pen: Pen, style: Style) -> None:
    pen.ring(0, -0.1, 0.85, 0.55, 0.3, style.main)
    pen.ring(0.04, -0.1, 0.52, 0.28, 0.18, style.dark)
    metal, size = style.shape.choice((GOLD, STEEL)), style.between(0.2, 0.28)
    pen.box(-0.95, 0.28, 0.5, 0.62, style.main)
    for i in range(3):
        pen.ellipse(-0.75 + i * 0.18, 0.45, 0.035, 0.035, INK)
    pen.box(0.3, 0.45 - size, 0.75, 0.45 + size, metal)
    pen.box(0.4, 0.45 - size * 0.55, 0.65, 0.45 + size * 0.55, style.accent)


@draws("Gloves")
def _glove(pen: Pen, style: Style) -> None:
    spread = style.between(0.85, 1.1)
    pen.strap("0.3,0.35 0.66,0.05 0.82,-0.3", 0.3, style.main)
    for x, top in ((-0.42, -0.7), (-0.15, -1.02), (0.13, -1.0), (0.4, -0.75)):
        pen.strap([(x * 0.9, 0.2), (x * spread, -0.3), (x * spread * 1.08, top)], 0.27, style.main)
    pen.cloth(rounded("-0.5,-0.15 0,-0.25 0.5,-0.12 0.48,0.4 0.4,0.75 -0.4,0.75 -0.52,0.4"), style)
    pen.box(-0.46, 0.68, 0.46, 1.0, style.accent)


@draws("Umbrellas")
def _umbrella(pen: Pen, style: Style) -> None:
    height = style.between(0.75, 0.95)
    pen.line("0,-0.9 0,0.85", 0.06, INK)
    pen.strap("0,0.7 0.02,1 0.2,1.08 0.32,0.9", 0.12, WOOD)
    scallops = [point for i in range(4) for point in arc(0.75 - i * 0.5, 0.02, 0.25, 0.16, 0, -180)]
    pen.cloth([*arc(0, 0.02, 1.0, height, 180, 360), *scallops], style)
    for x in (-0.5, 0.0, 0.5):
        pen.curve([(0, -height), (x * 0.75, -height * 0.6), (x, 0.0)], 0.03, style.dark)
    pen.ellipse(0, -height, 0.06, 0.1, style.accent)


@draws("Perfumes")
def _perfume(pen: Pen, style: Style) -> None:
    width, shoulder, cap = style.between(0.5, 0.72), style.between(-0.3, -0.1), style.between(0.2, 0.3)
    pen.box(-cap, -1.0, cap, -0.52, style.accent)
    pen.box(-0.13, -0.54, 0.13, shoulder, GOLD)
    outline = mirrored(f"0.18,{shoulder} {width},{shoulder + 0.12} {width},0.95")
    pen.polygon(arc(0, 0.4, width, 0.62) if style.has(0.4) else outline, mix(style.main, GLASS, 0.35))
    pen.box(-width * 0.6, 0.25, width * 0.6, 0.65, PAPER)
    pen.line([(-width * 0.35, 0.45), (width * 0.35, 0.45)], 0.05, INK)
    pen.line([(-width * 0.78, 0.1), (-width * 0.78, 0.6)], 0.05, PAPER)


@draws("Lipsticks")
def _lipstick(pen: Pen, style: Style) -> None:
    width = style.between(0.22, 0.3)
    side = width * 0.75
    pen.polygon(f"{-side},-0.2 {-side},-0.75 {width * 0.2},-1.1 {side},-0.95 {side},-0.2", style.main)
    pen.box(-width * 0.9, -0.25, width * 0.9, 0.25, GOLD)
    pen.box(-width * 1.15, 0.2, width * 1.15, 1.1, INK if style.has(0.6) else style.accent)
    pen.line([(-width * 0.8, 0.3), (-width * 0.8, 1.0)], 0.05, STEEL)


@draws("Nail Polish")
def _nail_polish(pen: Pen, style: Style) -> None:
    width = style.between(0.38, 0.5)
    pen.polygon(mirrored("0.17,-1.05 0.24,0.1"), INK if style.has(0.7) else style.accent)
    pen.smooth(mirrored(f"0.2,0.1 {width},0.25 {width * 1.05},0.7 {width * 0.9},0.95 0.2,0.98"), style.main)
    pen.line([(-width * 0.7, 0.35), (-width * 0.7, 0.75)], 0.07, style.light)


@draws("Mugs")
def _mug(pen: Pen, style: Style) -> None:
    width, height = style.between(0.48, 0.6), style.between(0.6, 0.8)
    pen.ring(width + 0.08, 0.02, 0.28, 0.36, 0.16, style.main)
    bottom = [(width * 0.95, height), *arc(0, height, width * 0.95, 0.12, 0, 180)]
    pen.cloth([(-width, -height), (width, -height), *bottom], style)
    pen.ellipse(0, -height, width, 0.14, style.dark)
    if style.has(0.6):
        pen.ellipse(0, 0.1, 0.2, 0.2, style.accent)


@draws("Plates")
def _plate(pen: Pen, style: Style) -> None:
    rim = style.between(0.6, 0.74)
    pen.ellipse(0, 0, 0.98, 0.98, style.main)
    pen.line(arc(0, 0, 0.9, 0.9, closed=True), 0.05, style.accent)
    pen.ellipse(0, 0, rim, rim, style.light)
    pen.ellipse(0, 0, rim * 0.82, rim * 0.82, mix(style.light, (255, 255, 255), 0.3))


@draws("Teapots")
def _teapot(pen: Pen, style: Style) -> None:
    pen.ring(-0.68, 0.1, 0.28, 0.36, 0.14, style.dark)
    pen.smooth("0.45,0.35 0.75,0.1 0.82,-0.25 1,-0.3 0.92,0.1 0.6,0.6", style.main)
    height = style.between(0.52, 0.66)
    pen.cloth(arc(0, 0.18, 0.66, height), style)
    pen.polygon(arc(0, 0.22 - height, 0.36, 0.2, 180, 360), style.dark)
    pen.ellipse(0, -0.02 - height, 0.1, 0.1, style.accent)
    pen.box(-0.35, 0.1 + height, 0.35, 0.22 + height, style.dark)


@draws("Pans")
def _pan(pen: Pen, style: Style) -> None:
    radius = style.between(0.58, 0.68)
    pen.line("0.2,0.1 0.78,0.98", 0.2, INK)
    pen.line("0.5,0.56 0.76,0.95", 0.12, style.accent)
    pen.ellipse(-0.2, -0.32, radius, radius, style.main)
    pen.ellipse(-0.2, -0.32, radius * 0.84, radius * 0.84, (66, 66, 70))
    pen.line(arc(-0.2, -0.32, radius * 0.6, radius * 0.6, 190, 280), 0.04, STEEL)


@draws("Chairs")
def _chair(pen: Pen, style: Style) -> None:
    back = style.between(-1.2, -0.9)
    for x, y in ((-0.5, 1.15), (0.3, 1.15), (-0.2, 0.9), (0.55, 0.9)):
        pen.line([(x * 0.95, 0.1), (x, y)], 0.1, WOOD)
    for x in (-0.22, 0.52):
        pen.line([(x, 0.05), (x + 0.04, back)], 0.1, WOOD)
    for i in range(2 + style.shape.randrange(2)):
        y = back + 0.08 + i * 0.3
        pen.polygon(f"-0.24,{y} 0.58,{y} 0.57,{y + 0.17} -0.23,{y + 0.17}", style.main)
    pen.cloth("-0.55,0.22 -0.22,-0.02 0.58,-0.02 0.38,0.22", style)
    pen.box(-0.55, 0.22, 0.38, 0.33, style.dark)


@draws("Tables")
def _table(pen: Pen, style: Style) -> None:
    height = style.between(0.6, 0.85)
    for x, y in ((-0.88, height), (0.72, height), (-0.62, height - 0.22), (0.9, height - 0.22)):
        pen.line([(x, -0.1), (x, y)], 0.11, WOOD)
    pen.cloth("-0.98,0 -0.68,-0.32 1,-0.32 0.82,0", style)
    pen.box(-0.98, 0.0, 0.82, 0.13, style.dark)


@draws("Sofas")
def _sofa(pen: Pen, style: Style) -> None:
    back = style.between(-0.6, -0.4)
    for foot in both("0.8,0.5 0.8,0.72"):
        pen.line(foot, 0.1, WOOD)
    pen.cloth(rounded(f"-0.82,0.2 -0.82,{back} 0,{back - 0.05} 0.82,{back} 0.82,0.2"), style)
    for x in (-0.7, 0.0):
        pen.box(x, 0.02, x + 0.7, 0.3, style.light)
    pen.box(-0.75, 0.28, 0.75, 0.55, style.dark)
    for arm in both("0.7,0.58 0.7,-0.1 0.85,-0.2 1,-0.1 1,0.58"):
        pen.smooth(arm, style.main)
    pen.polygon("-0.5,-0.3 -0.2,-0.2 -0.3,0.1 -0.6,0", style.accent)


@draws("Lamps")
def _lamp(pen: Pen, style: Style) -> None:
    top, bottom = style.between(0.28, 0.45), style.between(0.6, 0.8)
    pen.line("0,-0.2 0,0.95", 0.1, style.accent)
    pen.ellipse(0, 1.0, 0.42, 0.13, style.accent)
    pen.ellipse(0, -0.08, 0.13, 0.18, (255, 232, 150))
    pen.cloth(mirrored([(top, -1.0), (bottom, -0.15)]), style)


@draws("Cushions")
def _cushion(pen: Pen, style: Style) -> None:
    pull = style.between(0.78, 0.88)
    upper, lower = f"-0.92,-0.92 0,{-pull} 0.92,-0.92 {pull},0", f"0.92,0.92 0,{pull} -0.92,0.92 {-pull},0"
    pen.cloth(rounded(f"{upper} {lower}"), style)
    if style.has(0.6):
        pen.ellipse(0, 0, 0.1, 0.1, style.accent)
    else:
        pen.line(arc(0, 0, 0.4, 0.4, closed=True), 0.06, style.accent)


@draws("Books")
def _book(pen: Pen, style: Style) -> None:
    width = style.between(0.55, 0.7)
    edge = width + 0.2
    pen.polygon(f"{-width},0.85 {0.2 - width},1.08 {edge},1.08 {width},0.85", PAPER)
    pen.polygon(f"{width},-0.95 {edge},-0.72 {edge},1.08 {width},0.85", mix(PAPER, INK, 0.15))
    pen.cloth(mirrored([(width, -0.95), (width, 0.85)]), style)
    pen.box(-width, -0.95, -width + 0.16, 0.85, style.dark)
    pen.box(-width + 0.35, -0.65, width - 0.15, -0.3, PAPER)
    pen.line([(-width + 0.45, -0.48), (width - 0.25, -0.48)], 0.05, INK)
    pen.ellipse(0.08, 0.3, 0.24, 0.24, style.accent)


@draws("Notebooks")
def _notebook(pen: Pen, style: Style) -> None:
    width = style.between(0.6, 0.72)
    pen.cloth(mirrored([(width, -0.98), (width, 0.98)]), style)
    if style.has(0.5):
        pen.line([(width - 0.15, -0.98), (width - 0.15, 0.98)], 0.07, style.accent)
    else:
        pen.box(-width + 0.35, -0.5, width - 0.2, -0.1, style.accent)
    for i in range(9):
        y = -0.86 + i * 0.215
        pen.ellipse(-width + 0.1, y, 0.045, 0.045, PAPER)
        pen.line(arc(-width, y, 0.12, 0.06, 60, 360), 0.045, INK)


@draws("Pencils")
def _pencil(pen: Pen, style: Style) -> None:
    width = style.between(0.13, 0.19)
    pen.box(-width, -0.72, width, 0.75, style.main)
    pen.line([(-width * 0.3, -0.7), (-width * 0.3, 0.73)], 0.05, style.light)
    pen.box(-width, -0.92, width, -0.7, STEEL)
    pen.smooth(mirrored([(width * 0.9, -1.15), (width, -0.92)]), (232, 140, 150))
    pen.polygon(f"{-width},0.75 {width},0.75 0,1.25", (226, 190, 140))
    pen.polygon(f"{-width * 0.4},1.05 {width * 0.4},1.05 0,1.27", INK)


def _slab(width: float, height: float, corner: float) -> list[Point]:
    x, y = width - corner, height - corner
    return mirrored([(x, -height), (width, -y), (width, y), (x, height)])


@draws("Phones")
def _phone(pen: Pen, style: Style) -> None:
    width = style.between(0.46, 0.56)
    pen.polygon(_slab(width, 1.05, 0.12), style.main)
    pen.box(-width + 0.07, -0.88, width - 0.07, 0.82, (40, 48, 66))
    for row in range(3):
        for column in range(3):
            x, y = (column - 1) * width * 0.52, -0.55 + row * 0.36
            pen.box(x - 0.08, y - 0.08, x + 0.08, y + 0.08, (style.accent, GLASS, (236, 190, 84))[(row + column) % 3])
    pen.line("-0.1,-0.96 0.1,-0.96", 0.04, INK)
    pen.ellipse(0, 0.94, 0.06, 0.06, style.dark)


@draws("Laptops")
def _laptop(pen: Pen, style: Style) -> None:
    width = style.between(0.7, 0.8)
    pen.box(-width, -0.75, width, 0.22, style.main)
    pen.box(-width + 0.08, -0.66, width - 0.08, 0.13, (52, 62, 84))
    pen.polygon(f"{-width + 0.08},0.13 -0.15,-0.4 0.15,-0.1 0.32,-0.25 {width - 0.08},0.13", style.accent)
    pen.polygon(mirrored(f"{width},0.24 1,0.66"), style.light)
    for i in range(3):
        x, y = width + i * 0.06 - 0.08, 0.31 + i * 0.09
        pen.line([(-x, y), (x, y)], 0.05, INK)
    pen.polygon(mirrored("0.22,0.56 0.24,0.64"), style.dark)
    pen.polygon(mirrored("1,0.66 0.96,0.74"), style.dark)


@draws("Headphones")
def _headphones(pen: Pen, style: Style) -> None:
    pen.strap(arc(0, 0.15, 0.72, style.between(0.75, 0.95), 180, 360)[::2], 0.2, style.main)
    for cup in both("0.6,-0.1 0.84,-0.1 0.88,0.3 0.84,0.7 0.6,0.7 0.56,0.3"):
        pen.smooth(cup, style.dark)
    for pad in both("0.82,0 1,0.1 1,0.52 0.82,0.62"):
        pen.smooth(pad, style.accent)


@draws("Cameras")
def _camera(pen: Pen, style: Style) -> None:
    radius = style.between(0.36, 0.44)
    pen.box(-0.3, -0.72, 0.3, -0.4, style.dark)
    pen.box(0.55, -0.58, 0.8, -0.45, style.accent)
    pen.polygon(_slab(0.95, 0.52, 0.1), style.main)
    pen.box(-0.95, -0.25, 0.95, 0.32, INK)
    for share, fill in ((1.0, STEEL), (0.82, INK), (0.55, (70, 90, 130)), (0.22, GLASS)):
        pen.ellipse(0, 0.02, radius * share, radius * share, fill)
    pen.box(-0.82, -0.46, -0.55, -0.32, (255, 244, 200))


@draws("Guitars")
def _guitar(pen: Pen, style: Style) -> None:
    waist = style.between(0.3, 0.38)
    pen.polygon(mirrored("0.14,-1.28 0.1,-1"), style.accent)
    pen.smooth(mirrored(f"0.1,-0.18 0.42,0.02 {waist},0.34 0.6,0.78 0.4,1.15 0.1,1.22"), style.main)
    pen.ellipse(0, 0.42, 0.17, 0.17, INK)
    pen.box(-0.08, -1.05, 0.08, 0.3, (92, 62, 40))
    pen.box(-0.24, 0.84, 0.24, 0.92, INK)
    for x in (-0.04, 0.0, 0.04):
        pen.line([(x, -1.1), (x, 0.86)], 0.015, PAPER)


@draws("Balls")
def _ball(pen: Pen, style: Style) -> None:
    pen.ellipse(0, 0, 0.9, 0.9, style.main)
    if style.has(0.5):
        for seam in both("0.55,-0.7 0.25,0 0.55,0.7"):
            pen.curve(seam, 0.05, INK)
        pen.line("-0.9,0 0.9,0", 0.05, INK)
        pen.line("0,-0.9 0,0.9", 0.05, INK)
    else:
        pen.polygon(arc(0, 0, 0.3, 0.3)[::6], style.accent)
        for x, y in _spokes(5, -90):
            pen.line([(x * 0.3, y * 0.3), (x * 0.62, y * 0.62)], 0.05, INK)
            pen.polygon(arc(x * 0.74, y * 0.74, 0.17, 0.17)[::6], style.accent)


@draws("Rackets")
def _racket(pen: Pen, style: Style) -> None:
    width, strings = style.between(0.48, 0.58), (128, 128, 120)
    pen.ellipse(0, -0.48, width, 0.68, CREAM, CREAM)
    for i in range(-3, 4):
        share = math.sqrt(1 - (i / 4) ** 2)
        pen.line([(i * width / 4, -0.48 - 0.68 * share), (i * width / 4, -0.48 + 0.68 * share)], 0.02, strings)
        pen.line([(-width * share, -0.48 + i * 0.17), (width * share, -0.48 + i * 0.17)], 0.02, strings)
    pen.ring(0, -0.48, width, 0.68, 0.14, style.main)
    pen.polygon("-0.24,0.12 -0.07,0.5 0.07,0.5 0.24,0.12 0,0.24", style.main)
    pen.box(-0.09, 0.45, 0.09, 1.2, style.accent)


@draws("Bicycles")
def _bicycle(pen: Pen, style: Style) -> None:
    radius = style.between(0.4, 0.46)
    for x in (-0.55, 0.55):
        pen.line(arc(x, 0.4, radius, radius, closed=True), 0.08, INK)
        for dx, dy in _spokes(8)[:4]:
            pen.line([(x - radius * dx, 0.4 - radius * dy), (x + radius * dx, 0.4 + radius * dy)], 0.015, STEEL)
    pen.line("-0.55,0.4 -0.28,-0.2 0.36,-0.25 -0.05,0.4 -0.55,0.4", 0.1, style.main)
    pen.line("-0.05,0.4 -0.34,-0.38", 0.09, style.main)
    pen.line("0.55,0.4 0.3,-0.5", 0.09, style.main)
    pen.curve("0.3,-0.5 0.52,-0.6 0.6,-0.42", 0.08, INK)
    pen.smooth("-0.55,-0.42 -0.2,-0.44 -0.15,-0.36 -0.5,-0.32", style.accent)
    pen.ellipse(-0.05, 0.4, 0.1, 0.1, STEEL)


@draws("Toy Cars")
def _toy_car(pen: Pen, style: Style) -> None:
    roof = style.between(-0.5, -0.35)
    body = f"-0.95,0.3 -0.95,0.02 -0.6,-0.05 -0.4,{roof} 0.25,{roof}"
    pen.smooth(f"{body} 0.52,-0.04 0.92,0.06 0.98,0.32 0,0.36", style.main)
    pen.polygon(f"-0.48,-0.05 -0.33,{roof + 0.1} -0.06,{roof + 0.1} -0.06,-0.05", GLASS)
    pen.polygon(f"0.03,-0.05 0.03,{roof + 0.1} 0.2,{roof + 0.1} 0.38,-0.05", GLASS)
    pen.line("-0.9,0.14 0.92,0.16", 0.07, style.accent)
    for x in (-0.52, 0.55):
        pen.ellipse(x, 0.36, 0.24, 0.24, RUBBER)
        pen.ellipse(x, 0.36, 0.11, 0.11, STEEL)
    pen.ellipse(0.92, 0.12, 0.06, 0.06, (255, 236, 150))
