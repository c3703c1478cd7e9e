"""Plain text tables and sizes."""

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """Columns in text, two spaces apart. align: a letter per column, "l" or "r"."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    line = lambda cells: "  ".join(  # noqa: E731
        cell.rjust(width) if side == "r" else cell.ljust(width)
        for cell, width, side in zip(cells, widths, align, strict=True)
    ).rstrip()
    return "\n".join(map(line, [head, *rows]))


def size(count: int) -> str:
    """Bytes, exactly and in a unit that reads well."""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, bigger
    return f"{count:,} B" if unit == "B" else f"{count:,} B ({value:.2f} {unit})"
