"""Draw the README's picture of a finished demo: ``python docs/overview.py cloudreg-demo overview.png``."""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from cloudreg.io import open_volume
from cloudreg.tiles import open_acquisition


def tiles(axes, acquisition):
    """Show one plane of every tile as the microscope delivered it, a little apart."""
    depth, height, width = acquisition.tile_shape
    gap = 8
    canvas = np.full((acquisition.rows * (height + gap), acquisition.columns * (width + gap)), np.nan)
    for tile in acquisition.tiles:
        y, x = tile.row * (height + gap), tile.column * (width + gap)
        canvas[y : y + height, x : x + width] = acquisition.read(tile, 0, depth // 2, depth // 2 + 1)[0]
    axes.imshow(canvas, cmap="gray", vmin=90, vmax=np.nanquantile(canvas, 0.995))


def volume(axes, path, index):
    """Show a plane of the corrected volume."""
    plane = open_volume(path).read()[index]
    axes.imshow(plane, cmap="gray", vmin=0, vmax=np.quantile(plane, 0.995))
    return plane


def outlines(axes, plane, labels):
    """Lay the atlas's regions over a plane."""
    rng = np.random.default_rng(3)
    ids, place = np.unique(labels, return_inverse=True)
    colours = np.column_stack(
        [plt.get_cmap("turbo")(rng.permutation(len(ids)) / len(ids))[:, :3], np.full(len(ids), 0.45)]
    )
    colours[ids == 0] = 0
    axes.imshow(plane, cmap="gray", vmin=0, vmax=np.quantile(plane, 0.995))
    axes.imshow(colours[place.reshape(labels.shape)])
    edge = (labels != np.roll(labels, 1, 0)) | (labels != np.roll(labels, 1, 1))
    axes.imshow(np.where(edge[..., None], (1.0, 1.0, 1.0, 0.8), (0.0, 0.0, 0.0, 0.0)))


def table(axes, path):
    """Draw the mean intensity of the largest regions, left and right."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    size = {row["acronym"]: float(row["volume_mm3"]) for row in rows if row["side"] == "left"}
    names = sorted(size, key=size.get, reverse=True)[:14]
    for shift, side, colour in ((-0.2, "left", "#0b7285"), (0.2, "right", "#f08c00")):
        means = {row["acronym"]: float(row["mean_channel_00"]) for row in rows if row["side"] == side}
        axes.barh(np.arange(len(names)) + shift, [means[n] for n in names], 0.38, color=colour, label=side)
    axes.set_yticks(np.arange(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)


def main(demo: Path, picture: Path) -> None:
    """Draw four panels and save them."""
    run = demo / "run"
    figure, panels = plt.subplots(1, 4, figsize=(15, 3.7), width_ratios=[1.25, 1.25, 1.25, 0.8], layout="constrained")
    acquisition = open_acquisition(demo / "acquisition" / "raw")
    tiles(panels[0], acquisition)
    labels = open_volume(run / "registration" / "labels_in_target.ome.zarr")
    index = acquisition.tile_shape[0] // 2
    plane = volume(panels[1], run / "corrected" / "channel_00.ome.zarr", index)
    outlines(panels[2], plane, labels.read()[index])
    table(panels[3], run / "regions.csv")
    titles = ("raw tiles", "stitched, corrected", "registered to the atlas", "mean intensity by region")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=11)
        if axes is not panels[3]:
            axes.axis("off")
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
