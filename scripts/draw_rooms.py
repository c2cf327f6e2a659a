"""Draw the subpackages ("rooms") by their imports, and the path of an image through them: docs/rooms.svg.

    python scripts/draw_rooms.py            write it
    python scripts/draw_rooms.py --check    check that it is up to date; the exit status is 1 if not

A room is a folder of `resshift_fast/`, the pipeline, or `kernels/`. It is drawn below every room that imports it. Lines
are imports; those that others imply are left out.
"""

import sys

from package_imports import PACKAGE, ROOT, room_graph

PICTURE = ROOT / "docs/rooms.svg"
WIDTH, BOX, ROW, TOP = 880, (112, 34), 66, 20

# The path of an image: the file or folder of each stage, and its name.
WAY = (
    ("images/sources.py", "kind of input"),
    ("images/reading.py", "read, colour"),
    ("images/batches.py", "tiles, batches"),
    ("restoration/model.py", "pixels to pixels"),
    ("models/autoencoder.py", "encode"),
    ("restoration/sampler.py", "reverse chain"),
    ("models/swin_unet.py", "denoise, each step"),
    ("models/autoencoder.py", "decode"),
    ("images/tiling.py", "feather, blend"),
    ("images/photo.py", "write"),
)


def reached(edges: dict[str, set[str]], room: str) -> set[str]:
    """All rooms below one; edges have no cycle."""
    return edges[room].union(*(reached(edges, other) for other in edges[room]))


def needed(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The transitive reduction of the edges."""
    return {a: {b for b in below if not any(b in reached(edges, c) for c in below)} for a, below in edges.items()}


def levels(edges: dict[str, set[str]]) -> list[list[str]]:
    """Rooms from top to bottom, each on the highest row that is below all that import it."""
    above = {room: {other for other in edges if room in edges[other]} for room in edges}

    def level(room: str) -> int:
        return max((level(other) + 1 for other in above[room]), default=0)

    rows: list[list[str]] = [[] for _ in range(max(map(level, edges)) + 1)]
    for room in sorted(edges):
        rows[level(room)].append(room)
    return rows


def _box(x: float, y: float, size: tuple[int, int], lines: tuple[str, ...], color: str) -> list[str]:
    width, height = size
    found = [f'<rect x="{x:g}" y="{y:g}" width="{width}" height="{height}" rx="5" fill="{color}" stroke="#445"/>']
    for i, line in enumerate(lines):
        middle = y + height / 2 + 4 + 15 * (i - (len(lines) - 1) / 2)
        found.append(f'<text x="{x + width / 2:g}" y="{middle:g}">{line}</text>')
    return found


def _rooms(edges: dict[str, set[str]]) -> tuple[list[str], int]:
    """The boxes and lines of the rooms, and the lower end of the drawing."""
    rows = levels(edges)
    places = {
        # Rows are shifted alternately, so that few lines pass through a box.
        room: ((i + 1) * WIDTH / (len(row) + 1) + (40 if j % 2 else -40), TOP + j * ROW)
        for j, row in enumerate(rows)
        for i, room in enumerate(row)
    }
    lines = []
    for room, below in sorted(needed(edges).items()):
        for other in sorted(below):
            (x1, y1), (x2, y2) = places[room], places[other]
            lines.append(f'<path d="M{x1:g} {y1 + BOX[1]:g}L{x2:g} {y2:g}" stroke="#889" marker-end="url(#tip)"/>')
    for room, (x, y) in places.items():
        lines += _box(x - BOX[0] / 2, y, BOX, (room,), "#e8eefc")
    return lines, TOP + len(rows) * ROW


def _way(top: int) -> tuple[list[str], int]:
    """The stages of an image's path in two rows, and the lower end of the drawing."""
    if missing := [file for file, _ in WAY if not (ROOT / PACKAGE / file).is_file()]:
        raise FileNotFoundError(f"{PACKAGE}/ has no {', '.join(missing)}; where is that stage now? Change WAY")
    lines = [f'<text x="{WIDTH / 2:g}" y="{top + 12}" font-weight="bold">The path of an image</text>']
    half, size = 5, (152, 44)
    places = [(12 + i % half * 174, top + 26 + i // half * 76) for i in range(len(WAY))]
    for i, ((x, y), (file, stage)) in enumerate(zip(places, WAY, strict=True)):
        if i % half:
            path = f"M{x - 22} {y + 22}H{x}"
        elif i:
            path = f"M{places[i - 1][0] + 76} {y - 32}V{y - 16}H{x + 76}V{y}"
        if i:
            lines.append(f'<path d="{path}" fill="none" stroke="#445" marker-end="url(#tip)"/>')
        lines += _box(x, y, size, (stage, file), "#eef7e8")
    return lines, places[-1][1] + size[1] + 16


def picture() -> str:
    """The whole picture."""
    rooms, end = _rooms(room_graph())
    way, end = _way(end)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {end}" font-family="sans-serif" font-size="12"'
        ' text-anchor="middle">\n<title>Subpackages of resshift_fast by imports, and the path of an image</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#445"/></marker></defs>'
    )
    background = f'<rect width="{WIDTH}" height="{end}" fill="#fff"/>'
    return "\n".join([head, background, *rooms, *way, "</svg>\n"])


def main() -> int:
    """Write or check the picture; returns the exit status."""
    if "--check" in sys.argv[1:]:
        if PICTURE.read_text(encoding="utf-8") == picture():
            return 0
        print(f"{PICTURE.relative_to(ROOT)} is out of date; run python scripts/draw_rooms.py", file=sys.stderr)
        return 1
    PICTURE.write_text(picture(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
