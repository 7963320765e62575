"""A section of a document: what a command found, as it is printed and as it is written between two markers.

What stands between the markers is written by a command, never by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # half a second, and most sections have none


class ReportError(ValueError):
    """There is nothing to report as asked; the message says what there is."""


@dataclass(frozen=True)
class Section:
    """Everything that a command has to show.

    Attributes:
        table: Markdown, or lines of fixed width if ``preformatted``.
        notes: Markdown paragraphs below it: how to read it, and what was left out.
        figures: file → the picture to be saved there.
        data: the numbers for other programs; None if the command has no ``--json``.
        preformatted: whether the table needs a font of fixed width.
        files: file → the text to be saved there.
    """

    table: str
    notes: Sequence[str] = ()
    figures: Mapping[Path, Figure] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    preformatted: bool = False
    files: Mapping[Path, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Table and notes as they are printed, with a newline at the end."""
        return "\n\n".join([self.table, *self.notes]) + "\n"

    @property
    def markdown(self) -> str:
        """Table and notes as they stand in a document."""
        return f"```text\n{self.text}```" if self.preformatted else self.text

    @property
    def json(self) -> str:
        """``data`` as JSON; what is not finite is null."""
        return json.dumps(_finite(self.data), indent=2, allow_nan=False) + "\n"


def _finite(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(item) for item in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table; with ``numbers`` all columns but the first are aligned to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def percent(share: float, rounding: float = 0.0) -> str:
    """``share`` in percent, to two digits; 0 below ``rounding``."""
    value = 100 * share
    return "0" if share < rounding else f"{value:,.0f} %" if value >= 10 else f"{value:.2g} %"


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` × ``height`` inches."""
    # not pyplot: it would choose a window system, and keep every figure alive
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def markers(block: str) -> tuple[str, str]:
    """The lines that enclose ``block``."""
    return f"<!-- {block}:begin -->", f"<!-- {block}:end -->"


def write_block(file: Path | str, block: str, text: str) -> None:
    """Replace what stands between the markers of ``block`` in ``file``.

    Raises:
        ReportError: ``file`` cannot be read or written, or has not each marker once, in this order.
    """
    begin, end = markers(block)
    before, old, after = split_at(file, block)
    new = f"\n\n{text}\n"
    try:
        if new != old:
            Path(file).write_text(f"{before}{begin}{new}{end}{after}", encoding="utf-8")
    except OSError as error:
        raise _unusable(file, error) from error


def split_at(file: Path | str, block: str) -> tuple[str, str, str]:
    """The text before, between and after the markers of ``block`` in ``file``.

    Raises:
        ReportError: ``file`` cannot be read, or has not each marker once, in this order.
    """
    begin, end = markers(block)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise _unusable(file, error) from error
    if (text.count(begin), text.count(end)) != (1, 1) or text.index(begin) > text.index(end):
        raise ReportError(f"{file} needs the markers {begin} and {end}, each once and in this order.")
    before, rest = text.split(begin)
    between, after = rest.split(end)
    return before, between, after


def _unusable(file: Path | str, error: OSError) -> ReportError:
    return ReportError(f"Cannot use {file}: {error.strerror}.")
