"""Command lines in TeraStitcher's manner, ``-name=value``: taken apart, and put together."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.scripts._legacy import boolean
from cloudreg.tiles import read_project

Default = TypeVar("Default", str, int, float, bool)
Words = str | list[str]


def extract_params() -> list[str]:
    """Return the words of this program's command line."""
    return sys.argv[1:]


def check_flag(params: list[str], string: str, delete: bool) -> str | None:
    """Return the value of a parameter such as ``-depth=``, and take it out of the list if wanted; None without it.

    Examples
    --------
    >>> words = ["-2", "-depth=256"]
    >>> check_flag(words, "-depth=", True), words
    ('256', ['-2'])
    """
    wanted = string.lstrip("-").rstrip("=")
    for index, word in enumerate(params):
        name, _, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name == wanted:
            if delete:
                del params[index]
            return value
    return None


def read_item(input_arr: list[str], item: str, default: Default, message: bool = True) -> Default:
    """Return the value of a parameter in the type of its default, which stands where it is missing.

    Examples
    --------
    >>> read_item(["-depth=128"], "-depth=", 256), read_item([], "-depth=", 256, message=False)
    (128, 256)
    """
    text = check_flag(input_arr, item, False)
    if text is None:
        if message:
            say(f"{item.strip('-=')} is not given: {default!r} is taken")
        return default
    kind: Any = boolean if isinstance(default, bool) else type(default)
    try:
        value: Default = kind(eliminate_double_quote(text))
    except ValueError:
        raise InputError(f"expected {type(default).__name__} for {item.strip('-=')}, got {text!r}") from None
    return value


@overload
def check_double_quote(inpstring: str) -> str: ...
@overload
def check_double_quote(inpstring: list[str]) -> list[str]: ...
def check_double_quote(inpstring: Words) -> Words:
    """Put what holds a space between double quotes; of ``-name=value``, the value.

    Examples
    --------
    >>> check_double_quote("-sfmt=TIFF (unstitched, 3D)")
    '-sfmt="TIFF (unstitched, 3D)"'
    """
    if isinstance(inpstring, list):
        return [check_double_quote(text) for text in inpstring]
    name, equals, value = inpstring.partition("=") if inpstring.startswith("-") else ("", "", inpstring)
    quoted = f'"{value}"' if " " in value and not (value.startswith('"') and value.endswith('"')) else value
    return f"{name}{equals}{quoted}"


@overload
def eliminate_double_quote(inpstring: str) -> str: ...
@overload
def eliminate_double_quote(inpstring: list[str]) -> list[str]: ...
def eliminate_double_quote(inpstring: Words) -> Words:
    """Take away the double quotes around a text; of ``-name=value``, around the value.

    Examples
    --------
    >>> eliminate_double_quote('"TIFF (3D)"')
    'TIFF (3D)'
    """
    if isinstance(inpstring, list):
        return [eliminate_double_quote(text) for text in inpstring]
    name, equals, value = inpstring.partition("=") if inpstring.startswith("-") else ("", "", inpstring)
    whole = len(value) > 1 and value.startswith('"') and value.endswith('"')
    return f"{name}{equals}{value[1:-1] if whole else value}"


def collect_instructions(inst: Sequence[str]) -> str:
    """Return all words as one text."""
    return " ".join(inst)


def find_last_slash(string: str) -> list[str]:
    """Return what stands up to the last slash, with it, and what follows.

    Examples
    --------
    >>> find_last_slash("a/b/c"), find_last_slash("c")
    (['a/b/', 'c'], ['', 'c'])
    """
    head, slash, tail = string.rpartition("/")
    return [head + slash, tail]


def read_input(inputf: str, nline: int = 0) -> list[str]:
    """Return the lines of a file, or the first ``nline`` of them."""
    lines = Path(inputf).read_text().splitlines()
    return lines[:nline] if nline else lines


def search_for_entry(string_2_serch: str | Sequence[str], file_in: str, nline: int = 0) -> Any:
    """Return what is assigned to a name such as ``HEIGHT=`` in a file, or to each of several; None where nothing is.

    Quotes and blanks around a value are not part of it; only the first ``nline`` lines are looked at if that is given.
    """
    if not isinstance(string_2_serch, str):
        return [search_for_entry(name, file_in, nline) for name in string_2_serch]
    for line in read_input(file_in, nline):
        before, found, rest = line.partition(string_2_serch)
        if found and not before[-1:].isalnum():
            rest = rest.strip()
            return rest[1:].partition('"')[0] if rest.startswith('"') else rest.partition(" ")[0]
    return None


def extract_np(inputf: str) -> int:
    """Return the number of planes along z that a project file states."""
    return read_project(inputf).slices
