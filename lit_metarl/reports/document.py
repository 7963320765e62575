"""Measured text in a document: what stands between two markers is written by a command, never by hand."""

from __future__ import annotations

from pathlib import Path


class ReportError(ValueError):
    """There is nothing to report as asked; the message says what there is."""


def markers(block: str) -> tuple[str, str]:
    """The lines that enclose ``block``."""
    return f"<!-- {block}:begin -->", f"<!-- {block}:end -->"


def write_block(file: Path | str, block: str, text: str) -> None:
    """Replace what stands between the markers of ``block`` in ``file``.

    Raises:
        ReportError: ``file`` cannot be read or written, or has not each marker once, in this order.
    """
    begin, end = markers(block)
    try:
        old = Path(file).read_text(encoding="utf-8")
        if (old.count(begin), old.count(end)) != (1, 1) or old.index(begin) > old.index(end):
            raise ReportError(f"{file} needs the markers {begin} and {end}, each once and in this order.")
        before, rest = old.split(begin)
        new = f"{before}{begin}\n\n{text}\n{end}{rest.split(end)[1]}"
        if new != old:
            Path(file).write_text(new, encoding="utf-8")
    except OSError as error:
        raise ReportError(f"Cannot use {file}: {error.strerror}.") from error
