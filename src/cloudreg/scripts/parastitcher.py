"""2021: TeraStitcher's steps in parallel, as functions and as a program.

python -m cloudreg.scripts.parastitcher -2 -projin=xml_import.xml -projout=xml_displcomp.xml [-sV=V -sH=H -sD=D]
    [-subvoldim=60] [-imin_channel=C]
python -m cloudreg.scripts.parastitcher -3 -projin=xml_displcomp.xml -projout=xml_displproj.xml
python -m cloudreg.scripts.parastitcher -4 -projin=xml_displproj.xml -projout=xml_displthres.xml [-threshold=0.7]
python -m cloudreg.scripts.parastitcher -5 -projin=xml_displthres.xml -projout=xml_merging.xml
python -m cloudreg.scripts.parastitcher -6 -projin=xml_merging.xml -volout=FOLDER [-volout_plugin=FORMAT]
    [-resolutions=012] [-slicedepth=256 -sliceheight=256 -slicewidth=256] [-isotropic] [-info]

Our own stitching does the work, on all cores (or -np=N of them) or on --cluster tcp://HOST:PORT; with --engine
terastitcher, TeraStitcher's programs on the PATH do it. Formats: see paraconverter.
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
    do_additional_partition,
    opt_algo,
    partition,
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
    extract_np,
    extract_params,
    find_last_slash,
    read_input,
    read_item,
    search_for_entry,
)

moved("parastitcher", "cloudreg align and cloudreg fuse")

__all__ = [
    "check_double_quote",
    "check_flag",
    "collect_instructions",
    "create_commands",
    "create_sizes",
    "create_starts_end",
    "do_additional_partition",
    "eliminate_double_quote",
    "extract_np",
    "extract_params",
    "find_last_slash",
    "generate_final_command",
    "generate_first_command",
    "generate_parallel_command",
    "main_step2",
    "main_step6",
    "opt_algo",
    "partition",
    "pop_left",
    "prep_array",
    "read_input",
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


def main_step2(queue: list[str]) -> None:
    """Run the commands of an alignment side by side."""
    dispatch(queue)


def main_step6(queue: list[str], rs_fname: str) -> None:
    """Run the commands of a fusion side by side; ``rs_fname`` remembers which are done."""
    dispatch(queue, rs_fname)


def program(argv: list[str] | None = None) -> int:
    """Do the step that a command line asks for; return the exit code."""
    return as_program(extract_params() if argv is None else argv, __doc__)


if __name__ == "__main__":
    sys.exit(program())
