"""The commands of a conversion in parallel, in TeraConverter's manner, planned from a command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloudreg.errors import InputError
from cloudreg.io import open_volume
from cloudreg.io.lengths import VoxelSizeUnknownError
from cloudreg.scripts import _planner as planner
from cloudreg.scripts._words import (
    check_double_quote,
    check_flag,
    collect_instructions,
    eliminate_double_quote,
    extract_params,
)
from cloudreg.stitching.fusion import canvas_grid
from cloudreg.stitching.places import tile_places
from cloudreg.tiles import open_acquisition, read_project

UNSTITCHED = "TIFF (unstitched, 3D)"
SERIES = "TIFF (series, 2D)"
_DEPTHS = {"depth": ("depth", "slicedepth"), "height": ("height", "sliceheight"), "width": ("width", "slicewidth")}
_BLOCK = 256


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
    sfmt = eliminate_double_quote(_taken(params, ("sfmt",)) or UNSTITCHED)
    dfmt = eliminate_double_quote(_taken(params, ("dfmt", "volout_plugin")) or SERIES)
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
        return canvas_grid(tile_places(acquisition, project), acquisition.voxel_size_um).shape
    try:
        return open_volume(source).grid.shape
    except VoxelSizeUnknownError:
        return open_volume(source, voxel_size_um=(1, 1, 1)).grid.shape


def _once(option: str, name: str, purpose: str) -> Callable[..., str]:
    """Return a function that gives the command of TeraConverter that runs before or after all blocks."""

    def generate(
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
        common = _common(input_name, output_name, wb1, wb2, wb3, sfmt, dfmt, iresolutions)
        return collect_instructions([f"teraconverter {option}", *common, last_string]).strip()

    generate.__name__ = generate.__qualname__ = name
    generate.__doc__ = f"Return the command of TeraConverter that {purpose}; see `read_params`."
    return generate


generate_first_command = _once("--makedirs", "generate_first_command", "makes the folders of a conversion")
generate_final_command = _once("--metadata", "generate_final_command", "writes the metadata at the end")


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
    values = [check_flag(params, f"-{name}=", True) for name in names]
    return next((value for value in values if value is not None), None)


def _number(text: str, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"expected a number of voxels for {name}, got {text!r}")
    return int(text)
