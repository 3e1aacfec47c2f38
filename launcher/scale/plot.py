"""A scaling test as a picture: tokens a second over ranks beside the straight line, and the efficiency; plain SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from launcher import units
from launcher.scale.table import Row

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 360, 260, 62, 40, 44, 40


def as_svg(rows: Sequence[Row], title: str) -> str:
    """Two panels.

    Args:
        rows: By size.
        title: What stands above them.
    """
    ranks = [float(row.ranks) for row in rows]
    reached = [row.tokens_per_s for row in rows]
    ideal = [rows[0].tokens_per_s_per_rank * row.ranks for row in rows]
    efficiency = [100 * row.efficiency for row in rows]
    left = _panel(0, "tokens/s", ranks, [("ideal", ideal), ("measured", reached)], max(ideal + reached))
    right = _panel(1, "efficiency, %", ranks, [("", efficiency)], max(100.0, *efficiency))
    width, height = 2 * (LEFT + WIDTH + GAP), TOP + HEIGHT + BOTTOM
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif"'
    return "\n".join(
        [
            f'{head} font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
            *left,
            *right,
            "</svg>\n",
        ]
    )


def _panel(
    number: int, label: str, xs: Sequence[float], lines: Sequence[tuple[str, Sequence[float]]], top: float
) -> list[str]:
    x0, y0 = LEFT + number * (LEFT + WIDTH + GAP), TOP + HEIGHT

    def x_of(value: float) -> float:
        return x0 + WIDTH * value / max(xs)

    def y_of(value: float) -> float:
        return y0 - HEIGHT * value / (1.05 * top)

    parts = [f'<path d="M{x0},{TOP} V{y0} H{x0 + WIDTH}" fill="none" stroke="black"/>']
    parts.append(f'<text x="{x0}" y="{TOP - 6}">{escape(label)}</text>')
    parts.append(f'<text x="{x0 + WIDTH}" y="{y0 + 34}" text-anchor="end">ranks</text>')
    for x in xs:
        parts.append(f'<text x="{x_of(x):.1f}" y="{y0 + 16}" text-anchor="middle">{x:.0f}</text>')
    for share in (0.25, 0.5, 0.75, 1.0):
        y = y_of(share * top)
        parts.append(f'<path d="M{x0},{y:.1f} h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{units.count(share * top)}</text>')
    for name, ys in lines:
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(xs, ys, strict=True))
        look = 'stroke="#999" stroke-dasharray="5 4"' if name == "ideal" else 'stroke="#06c" stroke-width="2"'
        parts.append(f'<polyline points="{points}" fill="none" {look}/>')
        if name != "ideal":
            parts += [
                f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3" fill="#06c"/>'
                for x, y in zip(xs, ys, strict=True)
            ]
    return parts
