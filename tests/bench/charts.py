"""Bars, drawn by hand: a background of their own, so that they can be read on any page."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

ROW, GAP, LEFT, WIDE, RIGHT, TOP = 24, 34, 310, 340, 90, 40
STYLE = """
.back{fill:#fff;stroke:#d0d7de}.text{fill:#1f2328}.dim{fill:#59636e}.us{fill:#2f6f9f}.bar{fill:#b4bfc9}
@media(prefers-color-scheme:dark){
.back{fill:#0d1117;stroke:#3d444d}.text{fill:#e6edf3}.dim{fill:#9198a1}.us{fill:#58a6d6}.bar{fill:#4a535e}
}
"""


@dataclass(frozen=True)
class Bar:
    """One bar; `ours` is the one to look for."""

    name: str
    value: float
    shown: str
    ours: bool = False


@dataclass(frozen=True)
class Group:
    """Bars of one scale."""

    title: str
    bars: Sequence[Bar]


def drawn(title: str, groups: Sequence[Group]) -> str:
    """Return a chart in SVG; what it shows is said in words in it, too."""
    lines, top = [], TOP
    for group in groups:
        lines.append(f'<text class="dim" x="16" y="{top + 14}">{escape(group.title)}</text>')
        top += ROW
        most = max(bar.value for bar in group.bars)
        for bar in group.bars:
            lines += _bar(bar, most, top)
            top += ROW
        top += GAP - ROW
    wide, high = LEFT + WIDE + RIGHT, top
    size = f'viewBox="0 0 {wide} {high}" width="{wide}" height="{high}"'
    role = f'role="img" aria-label={quoteattr(said(title, groups))}'
    font = 'font-family="sans-serif" font-size="13"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {role} {font}>',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="back" x="0.5" y="0.5" width="{wide - 1}" height="{high - 1}" rx="6"/>',
            f'<text class="text" x="16" y="26" font-weight="bold">{escape(title)}</text>',
            *lines,
            "</svg>\n",
        ]
    )


def said(title: str, groups: Sequence[Group]) -> str:
    """Return what a chart shows, in words."""
    parts = [
        f"{group.title}: " + ", ".join(f"{bar.name} {bar.shown}" for bar in group.bars)
        for group in groups
    ]
    return f"{title}. {'; '.join(parts)}."


def _bar(bar: Bar, most: float, top: int) -> list[str]:
    wide = max(2, round(WIDE * bar.value / most)) if most else 2
    text = f'class="text" y="{top + 15}"' + (' font-weight="bold"' if bar.ours else "")
    box = f'x="{LEFT}" y="{top + 3}" width="{wide}" height="{ROW - 7}" rx="2"'
    return [
        f'<text {text} x="{LEFT - 8}" text-anchor="end">{escape(bar.name)}</text>',
        f'<rect class="{"us" if bar.ours else "bar"}" {box}/>',
        f'<text {text} x="{LEFT + wide + 6}">{escape(bar.shown)}</text>',
    ]
