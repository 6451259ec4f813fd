"""A page that holds everything it shows: sections of parts, drawn by ``report.html.j2``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from cloudreg.run_folder import write_atomically
from cloudreg.viewer.pictures import Picture


@dataclass(frozen=True)
class Part:
    """A piece of a section.

    Parameters
    ----------
    kind
        What it is; the template draws each kind in its own way.
    title
        Small heading, or nothing.
    pictures
        For pictures and charts: what to show, in a row.
    rows
        For tables: the first row holds the column names. For bars and meters: mappings of name, percent and value.
    summary, text
        For a text that opens at a click.
    """

    kind: Literal["pictures", "charts", "table", "bars", "meters", "sortable", "text"]
    title: str = ""
    pictures: Sequence[Picture] = ()
    rows: Sequence[Any] = ()
    summary: str = ""
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the page, reached by ``#anchor``."""

    anchor: str
    title: str
    lead: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Fact:
    """A number at the top of the page."""

    name: str
    value: str


def write_page(path: Path, title: str, subtitle: str, facts: Sequence[Fact], sections: Sequence[Section]) -> None:
    """Write an HTML file; it appears whole or not at all."""
    import jinja2

    from cloudreg import __version__

    template = (files("cloudreg.viewer") / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(template).render(
        title=title, subtitle=subtitle, facts=facts, sections=sections, version=__version__
    )
    write_atomically(path, page)
