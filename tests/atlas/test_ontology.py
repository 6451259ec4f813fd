"""Names of regions, in every format they come in."""

import json

import pytest

from cloudreg.atlas import Region, Regions, load_regions
from cloudreg.errors import InputError

TREE = {
    "id": 997,
    "acronym": "root",
    "name": "root",
    "children": [
        {"id": 8, "acronym": "grey", "name": "Grey matter", "children": [{"id": 3_000_000_000, "acronym": "CTX"}]},
        {"id": 73, "acronym": "VS", "name": "ventricular, systems", "children": []},
    ],
}
EXPECTED = [
    Region(997, "root", "root", None),
    Region(8, "grey", "Grey matter", 997),
    Region(3_000_000_000, "CTX", "CTX", 8),
    Region(73, "VS", "ventricular, systems", 997),
]


def load(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return load_regions(tmp_path / name)


@pytest.mark.parametrize("content", [TREE, [TREE], {"success": True, "msg": [TREE]}])
def test_the_allen_tree_bare_or_in_its_envelope(tmp_path, content):
    assert list(load(tmp_path, "o.json", json.dumps(content)).values()) == EXPECTED


def test_the_brainglobe_list(tmp_path):
    rows = [
        {"id": 997, "acronym": "root", "name": "root", "structure_id_path": [997], "rgb_triplet": [255, 255, 255]},
        {"id": 8, "acronym": "grey", "name": "Grey matter", "structure_id_path": [997, 8]},
        {"id": 3_000_000_000, "acronym": "CTX", "name": "CTX", "structure_id_path": [997, 8, 3_000_000_000]},
        {"id": 73, "acronym": "VS", "name": "ventricular, systems", "structure_id_path": [997, 73]},
    ]
    assert list(load(tmp_path, "o.json", json.dumps(rows)).values()) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "o.csv",
            "id,acronym,name,parent_id\n997,root,root,\n8,grey,Grey matter,997\n3000000000,CTX,CTX,8\n"
            '73,VS,"ventricular, systems",997\n',
        ),
        (
            "o.tsv",
            "name\tid\tacronym\tparent_structure_id\nroot\t997\troot\t\nGrey matter\t8\tgrey\t997.0\n"
            "CTX\t3000000000\tCTX\t8.0\nventricular, systems\t73\tVS\t997.0\n",
        ),
        (
            "o.csv",
            "id,acronym,name,structure_id_path\n997,root,root,/997/\n8,grey,Grey matter,/997/8/\n"
            '3000000000,CTX,,/997/8/3000000000/\n73,VS,"ventricular, systems",/997/73/\n',
        ),
    ],
)
def test_tables(tmp_path, name, text):
    assert list(load(tmp_path, name, text).values()) == EXPECTED


def test_a_table_with_ids_alone_names_regions_by_their_id(tmp_path):
    assert load(tmp_path, "o.csv", "\ufeffid\n5\n7\n")[7] == Region(7, "7", "7")


def test_what_is_written_is_read_again(tmp_path):
    Regions(EXPECTED).write_csv(tmp_path / "regions.csv")
    assert list(load_regions(tmp_path / "regions.csv").values()) == EXPECTED


def test_kinship():
    regions = Regions(EXPECTED)
    assert regions.ancestors(3_000_000_000) == [8, 997]
    assert regions.descendants(8) == [8, 3_000_000_000]
    assert regions.named(12).acronym == "12"
    assert list(Regions.from_ids([5, 0, 3, 5])) == [3, 5]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.json", "{", "expected JSON"),
        ("o.json", "[]", "lists no regions"),
        ("o.csv", "name,acronym\na,b\n", "needs an id"),
        ("o.csv", "id\nseven\n", "whole number"),
        ("o.csv", "id\n7.5\n", "whole number"),
        ("o.csv", "id\n-7\n", "0 to 2"),
        ("o.csv", "id,acronym\n7,a\n7,b\n", "occurs twice"),
        ("o.csv", "id,parent_id\n7,8\n8,7\n", "its own ancestors"),
        ("o.csv", "id,parent_id\n7,7\n", "its own ancestors"),
        ("o.xml", "<a/>", ".json, .csv or .tsv"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, name, text)
    assert "\n" not in str(caught.value)


@pytest.mark.real
def test_the_allen_ontology(test_data):
    regions = load_regions(test_data / "allen_ccfv3" / "ara_ontology.json")
    assert len(regions) == 1327
    assert regions[997].acronym == "root" and regions[997].parent is None
    assert max(regions) == 614_454_277
    assert regions.ancestors(315)[-1] == 997
    assert len(regions.descendants(997)) == 1327
