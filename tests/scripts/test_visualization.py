"""Neuroglancer states: where Neuroglancer shows a voxel, and what the documentation says of links."""

import json
import urllib.parse
import urllib.request

import numpy as np
import pytest

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.io import write_volume
from cloudreg.space import Grid

GRID = Grid.from_spacing((4, 5, 6), (30.0, 20.0, 10.0))


@pytest.fixture
def viz(legacy):
    return legacy("visualization")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    write_volume(f"precomputed://{folder}/brain", np.ones(GRID.shape, np.uint16), GRID)
    write_volume(f"precomputed://{folder}/regions", np.ones(GRID.shape, np.uint32), GRID, kind="labels")
    return [f"{folder}/brain", f"{folder}/regions"]


def test_dimensions_are_in_metres(viz):
    assert viz.get_output_dimensions_json(np.array([1e-4] * 3)) == {axis: [1e-4, "m"] for axis in "xyz"}


def test_a_layer_is_shown_where_its_matrix_puts_it(viz, volumes):
    matrix = np.array([[0, -2, 0, 500], [1, 0, 0, 40], [0, 0, 1, -7], [0, 0, 0, 1.0]])
    layer = viz.get_layer_json(volumes[0], matrix, [1e-5, 2e-5, 1e-4])
    assert layer["type"] == "image" and layer["name"] == "brain"
    assert layer["source"]["url"] == f"precomputed://{volumes[0]}"
    transform = layer["source"]["transform"]
    assert transform["outputDimensions"] == {"x": [1e-5, "m"], "y": [2e-5, "m"], "z": [1e-4, "m"]}
    shown = np.array(transform["matrix"])
    assert shown.shape == (3, 4)
    # Neuroglancer: output voxel = linear part x (input voxel size / output voxel size) x voxel + translation.
    voxel, size, out = np.array([3, 2, 1.0]), np.array([1e-5, 2e-5, 3e-5]), np.array([1e-5, 2e-5, 1e-4])
    place_um = (shown[:, :3] @ (size * voxel) / out + shown[:, 3]) * out * 1e6
    np.testing.assert_allclose(place_um, (matrix @ [*(size * voxel * 1e6), 1])[:3])


def test_two_dimensional_data_take_a_3_by_3_matrix(viz, volumes):
    layer = viz.get_layer_json(volumes[0], [[1, 0, 10], [0, 1, 20], [0, 0, 1]], [1e-6] * 3)
    assert layer["source"]["transform"]["matrix"] == [[1, 0, 0, 10], [0, 1, 0, 20], [0, 0, 1, 0]]


def test_labels_are_a_segmentation_and_names_are_unique(viz, volumes):
    state = viz.get_neuroglancer_json([*volumes, volumes[0]], [np.eye(4)] * 3, [1e-5] * 3)
    assert [layer["type"] for layer in state["layers"]] == ["image", "segmentation", "image"]
    assert len({layer["name"] for layer in state["layers"]}) == 3
    assert state["dimensions"] == viz.get_output_dimensions_json([1e-5] * 3)


def test_a_link_leads_to_the_state(viz, volumes, state_server):
    link = viz.create_viz_link(volumes, shader_controls="#uicontrol float a slider", url=state_server)
    start = "https://ara.viz.neurodata.io/?json_url="
    assert link.startswith(start + state_server)
    with urllib.request.urlopen(link.removeprefix(start)) as answer:
        state = json.load(answer)
    assert [layer["name"] for layer in state["layers"]] == ["brain", "regions"]
    assert state["layers"][0]["shader"] == "#uicontrol float a slider" and "shader" not in state["layers"][1]
    assert state["layers"][0]["source"]["transform"]["matrix"] == np.eye(4)[:3].tolist()
    assert state["dimensions"]["x"] == [1e-4, "m"]


def test_a_link_may_hold_the_state_itself(viz, volumes):
    link = viz.create_viz_link(volumes[:1], shader_controls='{"normalized": {"range": [0, 9]}}', url=None)
    viewer, _, state = link.partition("#!")
    assert viewer == "https://ara.viz.neurodata.io/"
    layer = json.loads(urllib.parse.unquote(state))["layers"][0]
    assert layer["shaderControls"] == {"normalized": {"range": [0, 9]}}


def test_a_dead_state_server_is_said(viz, volumes):
    with pytest.raises(StoreUnreachableError, match=r"did not take the state .*give url=None"):
        viz.create_viz_link(volumes, url="http://127.0.0.1:9/v1")


def test_addresses_are_those_of_the_server_in_use(viz, s3):
    path = "s3://public/brain"
    write_volume(f"precomputed://{path}", np.ones(GRID.shape, np.uint16), GRID)
    assert viz.get_layer_json(path, np.eye(4), [1e-5] * 3)["source"]["url"] == (
        f"precomputed://{s3.endpoint}/public/brain"
    )


@pytest.mark.parametrize(
    ("paths", "matrices", "message"),
    [([0], [np.eye(2)], "expected a matrix of 4 x 4"), ([0, 1], [np.eye(4)], "expected a matrix for each of 2")],
)
def test_wrong_matrices_are_said(viz, volumes, paths, matrices, message):
    with pytest.raises(InputError, match=message):
        viz.get_neuroglancer_json([volumes[i] for i in paths], matrices, [1e-5] * 3)
