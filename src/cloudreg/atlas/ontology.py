"""Names of regions: which id is what, and which region holds which."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudreg.errors import InputError

_LARGEST_ID = 2**64 - 1


@dataclass(frozen=True)
class Region:
    """One entry of an ontology.

    Parameters
    ----------
    id
        As in the label volume; up to 64 bits.
    acronym, name
        Short and long name.
    parent
        Id of the region that holds it, None at the top.
    """

    id: int
    acronym: str
    name: str
    parent: int | None = None


class Regions(Mapping[int, Region]):
    """Region by id, in the order of the ontology.

    Parameters
    ----------
    regions
        With unique ids. A parent that is not among them counts as none.

    Raises
    ------
    InputError
        If an id occurs twice or is out of range, or a region is among its own ancestors.
    """

    def __init__(self, regions: Iterable[Region]) -> None:
        self._by_id: dict[int, Region] = {}
        for region in regions:
            if not 0 <= region.id <= _LARGEST_ID:
                raise InputError(f"region ids are 0 to 2^64 - 1, got {region.id} ({region.acronym})")
            if region.id in self._by_id:
                raise InputError(
                    f"region id {region.id} occurs twice in the ontology, as {self._by_id[region.id].acronym} and "
                    f"{region.acronym}: each id needs one row"
                )
            self._by_id[region.id] = region
        for region in self._by_id.values():
            self.ancestors(region.id)

    def __getitem__(self, region_id: int) -> Region:
        return self._by_id[int(region_id)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def named(self, region_id: int) -> Region:
        """Return the region; one with the id for a name where the ontology does not know it."""
        known = self._by_id.get(int(region_id))
        return Region(int(region_id), str(region_id), str(region_id)) if known is None else known

    def ancestors(self, region_id: int) -> list[int]:
        """Return the ids of the regions that hold this one, innermost first."""
        found: list[int] = []
        parent = self._by_id[region_id].parent
        while parent is not None and parent in self._by_id:
            if parent in found or parent == region_id:
                raise InputError(f"region {region_id} is among its own ancestors in the ontology: check parent ids")
            found.append(parent)
            parent = self._by_id[parent].parent
        return found

    def descendants(self, region_id: int) -> list[int]:
        """Return the ids of this region and of all that it holds, in the order of the ontology."""
        return [i for i in self._by_id if i == region_id or region_id in self.ancestors(i)]

    def write_csv(self, path: str | Path) -> None:
        """Write ``id,acronym,name,parent_id``, as `load_regions` reads it."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "acronym", "name", "parent_id"])
            for region in self._by_id.values():
                writer.writerow(
                    [region.id, region.acronym, region.name, "" if region.parent is None else region.parent]
                )

    @staticmethod
    def from_ids(ids: Iterable[int]) -> Regions:
        """Return regions without names: the id serves as both; 0 is background and left out."""
        return Regions(Region(i, str(i), str(i)) for i in sorted({int(v) for v in ids} - {0}))


def load_regions(path: str | Path) -> Regions:
    """Read an ontology.

    Parameters
    ----------
    path
        JSON: the Allen Institute's tree (``id, acronym, name, children``, bare or under ``msg``), or BrainGlobe's
        list (``id, acronym, name, structure_id_path``). CSV or TSV: ``id`` and, as far as they are there,
        ``acronym``, ``name``, and ``parent_id`` or ``parent_structure_id`` or ``structure_id_path``.

    Raises
    ------
    InputError
        If the file is none of these.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected an ontology (JSON or CSV) at {path}: {error}") from error
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"expected JSON in the ontology {path}: {error}") from error
        rows = list(_flatten(content, None))
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        lines = text.splitlines()
        rows = list(csv.DictReader(lines, delimiter="\t" if lines and "\t" in lines[0] else ","))
    else:
        raise InputError(f"an ontology is a .json, .csv or .tsv file, got {path}")
    if not rows:
        raise InputError(f"the ontology {path} lists no regions: expected at least one with an id")
    try:
        return Regions(_region(row) for row in rows)
    except KeyError:
        raise InputError(
            f"each region of the ontology {path} needs an id; found the columns {', '.join(map(str, rows[0]))}"
        ) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"ontology {path}: {error}") from error


def _flatten(node: Any, parent: object) -> Iterator[dict[str, Any]]:
    """Walk lists, trees with ``children`` and the ``msg`` envelope."""
    if isinstance(node, list):
        for item in node:
            yield from _flatten(item, parent)
    elif isinstance(node, dict) and "id" not in node and "msg" in node:
        yield from _flatten(node["msg"], parent)
    elif isinstance(node, dict):
        known = any(key in node for key in ("parent_structure_id", "parent_id", "structure_id_path"))
        yield node if known or parent is None else {**node, "parent_id": parent}
        yield from _flatten(node.get("children", []), node.get("id"))


def _region(row: Mapping[str, Any]) -> Region:
    region_id = _id(row["id"])
    acronym = str(row.get("acronym") or region_id).strip()
    name = str(row.get("name") or acronym).strip()
    parent = row.get("parent_id", row.get("parent_structure_id"))
    path = row.get("structure_id_path")
    if parent in (None, "") and path:
        steps = [s for s in path.split("/") if s] if isinstance(path, str) else list(path)
        parent = steps[-2] if len(steps) > 1 else None
    return Region(region_id, acronym, name, None if parent in (None, "", "nan") else _id(parent))


def _id(value: Any) -> int:
    """Return a whole number; spreadsheets write ids of columns with gaps as ``997.0``."""
    try:
        return int(value) if isinstance(value, int) or str(value).strip().lstrip("-").isdigit() else _whole(value)
    except ValueError:
        raise ValueError(f"expected a whole number as region id, got {value!r}") from None


def _whole(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)
