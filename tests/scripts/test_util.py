"""The helpers, against the words of the 2021 documentation."""

import doctest
import io

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.io.objects import write_json

LETTERS = st.sampled_from(["LPS", "PIR", "RAS", "ASR", "SAL", "IPR", "rsa", "PSR"])


@pytest.fixture(scope="module")
def util(legacy):
    return legacy("util")


def test_the_examples_of_the_documentation(util, legacy):
    import cloudreg.scripts._s3url

    for module in (cloudreg.scripts._s3url, util):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed
    assert legacy("visualization").S3Url is util.S3Url


@pytest.mark.parametrize("url", ["bucket/key", "https://bucket/key", "s3://"])
def test_what_is_no_s3_address_is_said(util, url):
    with pytest.raises(InputError, match="expected an address such as s3://bucket/folder"):
        util.S3Url(url)


@pytest.mark.parametrize(
    ("size", "lowest", "levels"), [([1024, 1024, 5], 1024, 0), ([1025, 8, 5000], 1024, 1), ([100, 4096, 1], 512, 3)]
)
def test_mips_end_where_a_plane_fits_in_a_chunk(util, size, lowest, levels):
    assert util.calc_hierarchy_levels(size, lowest_res=lowest) == levels


@given(st.lists(st.integers()), st.integers(1, 9))
def test_chunks_hold_all_of_a_list_in_order(legacy, items, n):
    pieces = list(legacy("util").chunks(items, n))
    assert [x for piece in pieces for x in piece] == items
    assert all(len(piece) == n for piece in pieces[:-1])
    assert all(0 < len(piece) <= n for piece in pieces[-1:])


@given(LETTERS, LETTERS)
def test_reorientations_bring_letters_to_letters(legacy, source, destination):
    order, flips = legacy("util").get_reorientations(source, destination)
    opposite = dict(zip("APSILR", "PAISRL", strict=True))
    found = [source.upper()[axis] for axis in order]
    assert "".join(opposite[x] if flip else x for x, flip in zip(found, flips, strict=True)) == destination.upper()


@pytest.mark.parametrize("wrong", ["LL", "LRP", "XYZ", "PIRA"])
def test_letters_that_are_none_raise(util, wrong):
    with pytest.raises(Exception, match="an orientation is three letters"):
        util.get_reorientations(wrong, "PIR")


def ramp(shape=(6, 8, 10), spacing=(2.0, 3.0, 4.0)):
    """An image whose value is 1 x + 10 y + 100 z of a voxel's place."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    image = sitk.GetImageFromArray((x * spacing[0] + 10 * y * spacing[1] + 100 * z * spacing[2]).astype(np.float32))
    image.SetSpacing(spacing)
    return image


@pytest.mark.parametrize("spacing", [(1.0, 1.5, 2.0), (4.0, 3.0, 8.0), (2.6, 2.7, 3.1)])
def test_resampling_keeps_the_place_of_things(util, spacing):
    result = util.imgResample(ramp(), spacing)
    assert result.GetSpacing() == spacing
    values = sitk.GetArrayFromImage(result)
    z, y, x = np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij")
    expected = x * spacing[0] + 10 * y * spacing[1] + 100 * z * spacing[2]
    inside = (x * spacing[0] <= 18) & (y * spacing[1] <= 21) & (z * spacing[2] <= 20)
    np.testing.assert_allclose(values[inside], expected[inside], rtol=1e-4)
    # Every voxel lies within the image, so none is padding.
    assert values.shape[0] * spacing[2] >= 6 * 4 - spacing[2] and (values[1:, 1:, 1:] > 0).all()


def test_resampling_to_a_size_pads_with_the_value_asked_for(util):
    result = util.imgResample(ramp(), [2, 3, 4], size=[12, 8, 6], outsideValue=-7)
    assert result.GetSize() == (12, 8, 6)
    values = sitk.GetArrayFromImage(result)
    assert (values[:, :, 10:] == -7).all() and (values[:, :, :10] >= 0).all()


def test_nearest_neighbours_make_no_new_labels(util):
    labels = sitk.GetImageFromArray(np.random.default_rng(0).choice([0, 7, 900], (5, 6, 7)).astype(np.uint16))
    result = util.imgResample(labels, [0.4, 0.7, 1.3], useNearest=True)
    assert result.GetPixelID() == sitk.sitkUInt16
    assert set(np.unique(sitk.GetArrayFromImage(result))) <= {0, 7, 900}


def test_an_origin_says_where_the_first_voxel_is_and_moves_nothing(util):
    image = ramp()
    image.SetOrigin((500.0, 0.0, 0.0))
    result = util.imgResample(image, [4.0, 3.0, 4.0], origin=[10.0, 20.0, 30.0])
    assert result.GetOrigin() == (10.0, 20.0, 30.0)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(result), sitk.GetArrayFromImage(util.imgResample(ramp(), [4.0, 3.0, 4.0]))
    )
    assert image.GetOrigin() == (500.0, 0.0, 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_known_bias_is_taken_off(util, scale):
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 24, 30)), indexing="ij")
    tissue = np.where((x**2 + y**2 + z**2 < 0.7) | (z > 0.3), 200.0, 240.0)
    image = sitk.GetImageFromArray((tissue * np.exp(0.5 * x + 0.3 * y)).astype(np.float32))
    image.SetSpacing((2.0, 2.0, 5.0))
    result = util.get_bias_field(image, scale=scale, niters=[20, 20])
    assert result.GetSize() == image.GetSize() and result.GetSpacing() == image.GetSpacing()

    def unevenness(values):
        ratio = values / tissue
        return (ratio / ratio.mean()).std()

    assert unevenness(sitk.GetArrayFromImage(result)) < 0.3 * unevenness(sitk.GetArrayFromImage(image))


def test_a_mask_says_where_the_bias_is_looked_for(util):
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 24, 24)), indexing="ij")
    inside = x < 0.2
    shown = np.where(inside, 100 * np.exp(0.5 * y), 4000.0)
    image = sitk.GetImageFromArray(shown.astype(np.float32))
    mask = sitk.GetImageFromArray(inside.astype(np.uint8))
    result = sitk.GetArrayFromImage(util.get_bias_field(image, mask, niters=[30, 30]))
    assert result[inside].std() / result[inside].mean() < 0.1 < shown[inside].std() / shown[inside].mean()


def test_a_stitching_project_is_fetched_only_when_it_is_whole(util, s3, tmp_path):
    place = "s3://private/logs/terastitcher"
    assert not util.download_terastitcher_files(place, tmp_path / "a")
    write_json(place, "xml_import.xml", {"step": "import"})
    assert not util.download_terastitcher_files(place, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    write_json(place, "xml_merging.xml", {"step": "merging"})
    assert util.download_terastitcher_files(place, str(tmp_path / "a"))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["xml_import.xml", "xml_merging.xml"]
    assert "merging" in (tmp_path / "a" / "xml_merging.xml").read_text()


def test_files_go_to_a_bucket_and_are_found_again(util, s3, tmp_path):
    for name in ("a.xml", "b.txt"):
        (tmp_path / name).write_text(name)
        util.upload_file_to_s3(str(tmp_path / name), "private", f"helpers/{name}")
    keys = util.get_matching_s3_keys("private", prefix="helpers/", suffix=".xml")
    # Keys are yielded, not returned all at once.
    assert next(keys) == "helpers/a.xml" and list(keys) == []
    assert sorted(util.get_matching_s3_keys("private", "helpers/")) == ["helpers/a.xml", "helpers/b.txt"]
    assert list(util.get_matching_s3_keys("private", "none")) == []


@pytest.mark.parametrize("words", [("s3", "ls"), (["s3", "ls"],)])
def test_the_aws_command_line_is_run_and_its_errors_raise(util, tmp_path, monkeypatch, words):
    program = tmp_path / "aws"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/words\nexit $(cat {tmp_path}/end)\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "end").write_text("0")
    assert util.aws_cli(*words) is None
    assert (tmp_path / "words").read_text() == "s3 ls\n"
    (tmp_path / "end").write_text("1")
    with pytest.raises(RuntimeError, match="aws s3 ls ended with exit status 1"):
        util.aws_cli(*words)


def test_without_the_aws_command_line_that_raises_too(util, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="pipx install awscli"):
        util.aws_cli("s3", "ls")


@pytest.mark.parametrize("jobs", [1, 2])
def test_joblib_reports_to_a_bar(util, jobs):
    joblib = pytest.importorskip("joblib")
    tqdm = pytest.importorskip("tqdm").tqdm
    usual = joblib.Parallel.print_progress
    with util.tqdm_joblib(tqdm(total=14, disable=False, file=io.StringIO())) as bar:
        runner = joblib.Parallel(n_jobs=jobs, prefer="threads")
        runner(joblib.delayed(abs)(n) for n in range(10))
        runner(joblib.delayed(abs)(n) for n in range(4))
    assert bar.n == 14
    assert joblib.Parallel.print_progress is usual
