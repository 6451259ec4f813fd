"""Atlases: BrainGlobe's, folders, files; and the names of their regions."""

from cloudreg.atlas.atlas import Atlas
from cloudreg.atlas.ids import as_ids, id_type
from cloudreg.atlas.load import label_ids, load_atlas, save_atlas
from cloudreg.atlas.ontology import Region, Regions, load_regions

__all__ = [
    "Atlas",
    "Region",
    "Regions",
    "as_ids",
    "id_type",
    "label_ids",
    "load_atlas",
    "load_regions",
    "save_atlas",
]
