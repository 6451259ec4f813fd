"""Command lines in TeraStitcher's manner, ``-name=value``: taken apart, put together, planned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from cloudreg.errors import InputError
from cloudreg.execution.progress import say
from cloudreg.io import open_volume
from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.scripts import _planner as planner
from cloudreg.scripts._legacy import boolean
from cloudreg.stitching.fusion import canvas_grid, tile_boxes
from cloudreg.tiles import open_acquisition, read_project

Default = TypeVar("Default", str, int, float, bool)
Words = str | list[str]
_DEPTHS = {"depth": ("depth", "slicedepth"), "height": ("height", "sliceheight"), "width": ("width", "slicewidth")}
_BLOCK = 256
_UNSTITCHED = "TIFF (unstitched, 3D)"


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


def read_params(
    words: Sequence[str] | None = None,
) -> tuple[str, str, int, int, int, str, str, list[int], int, list[str], str, int, int, int]:
    """Read the command line of a conversion, and the size of its source.

    Parameters
    ----------
    words
        By default those of this program's command line.

    Returns
    -------
    tuple
        input_name, output_name, depth wb1, height wb2 and width wb3 of the blocks, source format sfmt, destination
        format dfmt, resolutions, the highest of them, the other parameters, and these as one text; then height, width
        and depth of the source.
    """
    params = extract_params() if words is None else [*words]
    source, output = _taken(params, ("s", "projin")), _taken(params, ("d", "volout"))
    if not source or not output:
        raise InputError("expected -s= (or -projin=) and -d= (or -volout=): what to convert, and where to")
    wb1, wb2, wb3 = (_number(_taken(params, names) or str(_BLOCK), names[0]) for names in _DEPTHS.values())
    sfmt = eliminate_double_quote(_taken(params, ("sfmt",)) or _UNSTITCHED)
    dfmt = eliminate_double_quote(_taken(params, ("dfmt", "volout_plugin")) or "TIFF (series, 2D)")
    digits = _taken(params, ("resolutions",)) or "0"
    if not digits.isdecimal():
        raise InputError(f"expected -resolutions= as digits such as 012, got {digits!r}")
    resolutions = sorted({int(digit) for digit in digits})
    depth, height, width = source_shape(source)
    others = check_double_quote(params)
    blocks, formats = (wb1, wb2, wb3), (sfmt, dfmt, resolutions, max(resolutions))
    return (source, output, *blocks, *formats, others, collect_instructions(others), height, width, depth)


def source_shape(source: str) -> tuple[int, int, int]:
    """Return depth, height and width of what a project will be stitched to, or of a volume."""
    if source.endswith(".xml"):
        project = read_project(source)
        acquisition = open_acquisition(project.stacks_dir)
        return canvas_grid(tile_boxes(acquisition, project), acquisition.voxel_size_um).shape
    try:
        return open_volume(source).grid.shape
    except VoxelSizeUnknownError:
        return open_volume(source, voxel_size_um=(1, 1, 1)).grid.shape


def generate_first_command(
    input_name: str,
    output_name: str,
    wb1: int,
    wb2: int,
    wb3: int,
    sfmt: str,
    dfmt: str,
    iresolutions: Sequence[int],
    max_res: int,
    params: Sequence[str],
    last_string: str,
) -> str:
    """Return the command of TeraConverter that makes the folders of a conversion; see `read_params`."""
    common = _common(input_name, output_name, wb1, wb2, wb3, sfmt, dfmt, iresolutions)
    return collect_instructions(["teraconverter --makedirs", *common, last_string]).strip()


def generate_parallel_command(
    start_list: Sequence[Sequence[int]],
    end_list: Sequence[Sequence[int]],
    input_name: str,
    output_name: str,
    wb1: int,
    wb2: int,
    wb3: int,
    sfmt: str,
    dfmt: str,
    iresolutions: Sequence[int],
    max_res: int,
    params: Sequence[str],
    last_string: str,
) -> dict[int, str]:
    """Return the command of TeraConverter for each block, given by starts and ends (width, height, depth)."""
    common = _common(input_name, output_name, wb1, wb2, wb3, sfmt, dfmt, iresolutions)
    commands = {}
    for index, (start, end) in enumerate(zip(start_list, end_list, strict=True)):
        (h0, v0, d0), (h1, v1, d1) = start, end
        box = [f"-V0={v0}", f"-V1={v1}", f"-H0={h0}", f"-H1={h1}", f"-D0={d0}", f"-D1={d1}"]
        words = ["teraconverter --parallel --noprogressbar", *box, *common, last_string]
        commands[index] = collect_instructions(words).strip()
    return commands


def generate_final_command(
    input_name: str,
    output_name: str,
    wb1: int,
    wb2: int,
    wb3: int,
    sfmt: str,
    dfmt: str,
    iresolutions: Sequence[int],
    max_res: int,
    params: Sequence[str],
    last_string: str,
) -> str:
    """Return the command of TeraConverter that writes the metadata at the end; see `read_params`."""
    common = _common(input_name, output_name, wb1, wb2, wb3, sfmt, dfmt, iresolutions)
    return collect_instructions(["teraconverter --metadata", *common, last_string]).strip()


def create_commands(
    gi_np: int, info: bool = False, words: Sequence[str] | None = None
) -> tuple[str, dict[int, str], dict[int, list[int]], str]:
    """Return the commands of a conversion, as a command line asks for it.

    Parameters
    ----------
    gi_np
        Processes; blocks are cut along depth until there is one for each.
    info
        Print the memory that they need, in gigabytes.
    words
        By default those of this program's command line.

    Returns
    -------
    first_string, list_string, len_arr, final_string
        The command before, those of the blocks by index, the size of each block (width, height, depth), and the
        command at the end.
    """
    read = read_params(words)
    (wb1, wb2, wb3), most, (height, width, depth) = read[2:5], read[8], read[11:]
    heights, widths = planner.create_sizes(height, wb2, most), planner.create_sizes(width, wb3, most)
    while len(planner.create_sizes(depth, wb1, most)) * len(heights) * len(widths) < gi_np and wb1 >= 2 ** (most + 1):
        wb1 //= 2
    _, start_list, end_list, len_arr = planner.blocks((planner.create_sizes(depth, wb1, most), heights, widths))
    if info:
        largest = max((w * h * d for w, h, d in len_arr.values()), default=0)
        # A block of 16 bits, and its coarser copies.
        print(f"memory needed: {gi_np * largest * 2 * 8 / 7 / 1e9:.3f} GBytes")
    shared = read[:11]
    commands = generate_parallel_command(start_list, end_list, *shared)
    return generate_first_command(*shared), commands, len_arr, generate_final_command(*shared)


def _common(
    source: str, output: str, wb1: int, wb2: int, wb3: int, sfmt: str, dfmt: str, resolutions: Sequence[int]
) -> list[str]:
    words = [f"-s={source}", f"-d={output}", f"-sfmt={sfmt}", f"-dfmt={dfmt}"]
    digits = "".join(str(level) for level in resolutions)
    numbers = [f"-resolutions={digits}", f"-depth={wb1}", f"-height={wb2}", f"-width={wb3}"]
    return check_double_quote(words) + numbers


def _taken(params: list[str], names: Sequence[str]) -> str | None:
    values: Mapping[str, str | None] = {name: check_flag(params, f"-{name}=", True) for name in names}
    return next((value for value in values.values() if value is not None), None)


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"expected a number of voxels for {name}, got {text!r}")
    return int(text)
