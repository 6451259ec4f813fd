"""2021: TeraStitcher's steps in parallel, as functions and as a program.

``python -m cloudreg.scripts.parastitcher -2 -projin=xml_import.xml -projout=xml_displcomp.xml -sV= -sH= -sD=`` aligns;
``-3``, ``-4 -threshold=`` and ``-5`` go on from there; ``-6 -projin=xml_merging.xml -volout=folder -resolutions=012``
writes the stitched volume. Our own stitching does the work, on all cores or on ``--cluster tcp://…``; with
``--engine terastitcher``, TeraStitcher's programs on the PATH do it.
"""

from __future__ import annotations

import argparse
import sys

from cloudreg.scripts._legacy import moved, run
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
from cloudreg.scripts._steps import dispatch, run_step, subordinate, worker
from cloudreg.scripts._words import (
    check_double_quote,
    check_flag,
    collect_instructions,
    create_commands,
    eliminate_double_quote,
    extract_np,
    extract_params,
    find_last_slash,
    generate_final_command,
    generate_first_command,
    generate_parallel_command,
    read_input,
    read_item,
    read_params,
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
    words = argparse.Namespace(words=extract_params() if argv is None else argv)
    return run(lambda given: run_step(given.words), words)


if __name__ == "__main__":
    sys.exit(program())
