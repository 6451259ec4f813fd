"""The quality-control report: one HTML page of a run or of a registration.

`stages.py` and `fitted.py` make its sections from what lies in the folders, and `page.py` makes the page.
"""

from __future__ import annotations

from pathlib import Path

from cloudreg.errors import InputError
from cloudreg.run_folder import RunFolder, load_manifest
from cloudreg.viewer.fitted import registration_facts, registration_sections
from cloudreg.viewer.page import write_page
from cloudreg.viewer.stages import about_section, run_facts, run_sections, score_section


def write_run_report(folder: RunFolder) -> None:
    """Write ``report.html`` of a run from what its stages left.

    Raises
    ------
    InputError
        If the folder holds no run.
    """
    manifest = folder.read_manifest()
    if manifest is None:
        raise InputError(f"expected the folder of a run at {folder.path}, found no manifest.json: see cloudreg run")
    sections = score_section(folder.score) + run_sections(folder, manifest)
    if folder.registration.exists():
        sections += registration_sections(folder.registration, folder.regions)
    sections.append(about_section(manifest))
    facts = run_facts(folder, manifest) + registration_facts(folder.registration)
    subtitle = manifest["command"] or manifest["input"]["path"]
    write_page(folder.report, _title(folder.path), subtitle, facts, sections)


def write_registration_report(folder: Path) -> None:
    """Write ``report.html`` of a registration folder.

    Raises
    ------
    InputError
        If the folder holds no registration.
    """
    if not (folder / "manifest.json").is_file():
        raise InputError(f"expected a run or a registration in {folder}, found no manifest.json")
    manifest = load_manifest(folder)
    sections = [*registration_sections(folder, folder / "regions.csv"), about_section(manifest)]
    subtitle = str((manifest.get("settings") or {}).get("command") or folder)
    write_page(folder / "report.html", _title(folder), subtitle, registration_facts(folder), sections)


def _title(folder: Path) -> str:
    """Return the last two parts of the path: people name the outer folder after the sample."""
    return "/".join(folder.absolute().parts[-2:])
