"""2021: TeraConverter in parallel, as functions and as a program.

python -m cloudreg.scripts.paraconverter -s=SOURCE -d=FOLDER [-sfmt=FORMAT] [-dfmt=FORMAT] [-resolutions=012]
    [-depth=256 -height=256 -width=256] [-isotropic] [-info] [-np=N] [--cluster tcp://HOST:PORT] [--engine terastitcher]

writes a volume, or the tiles of a placed project (xml_merging.xml), as folders of TIFF files: "TIFF (series, 2D)",
"TIFF (tiled, 2D)", "TIFF (tiled, 3D)" or "TIFF (tiled, 4D)". Our own engine does it, on all cores or on a Dask cluster;
with --engine terastitcher, TeraConverter on the PATH does.
"""

from __future__ import annotations

import sys

from cloudreg.scripts._commands import (
    create_commands,
    generate_final_command,
    generate_first_command,
    generate_parallel_command,
    read_params,
)
from cloudreg.scripts._legacy import moved
from cloudreg.scripts._planner import (
    create_sizes,
    create_starts_end,
    opt_algo,
    pop_left,
    prep_array,
    score_function,
    sort_elaborations,
    sort_list,
    sort_start_end,
    sort_work,
)
from cloudreg.scripts._steps import as_program, subordinate
from cloudreg.scripts._terastitcher import dispatch, worker
from cloudreg.scripts._words import (
    check_double_quote,
    check_flag,
    collect_instructions,
    eliminate_double_quote,
    extract_params,
    read_item,
    search_for_entry,
)

moved("paraconverter", "cloudreg convert")

__all__ = [
    "check_double_quote",
    "check_flag",
    "collect_instructions",
    "create_commands",
    "create_sizes",
    "create_starts_end",
    "eliminate_double_quote",
    "extract_params",
    "generate_final_command",
    "generate_first_command",
    "generate_parallel_command",
    "main",
    "opt_algo",
    "pop_left",
    "prep_array",
    "read_item",
    "read_params",
    "score_function",
    "search_for_entry",
    "sort_elaborations",
    "sort_list",
    "sort_start_end",
    "sort_work",
    "subordinate",
    "worker",
]


def main(queue: list[str], rs_fname: str) -> None:
    """Run the commands of a conversion side by side; ``rs_fname`` remembers which are done."""
    dispatch(queue, rs_fname)


def program(argv: list[str] | None = None) -> int:
    """Do the conversion that a command line asks for; return the exit code."""
    return as_program(extract_params() if argv is None else argv, __doc__, conversion=True)


if __name__ == "__main__":
    sys.exit(program())
