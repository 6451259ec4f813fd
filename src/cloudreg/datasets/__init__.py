"""A digital brain phantom, and the demo acquisition that is made of it."""

from cloudreg.datasets.acquisition import DEMO, DemoSize, make_acquisition
from cloudreg.datasets.demo_report import DemoScore, score_demo
from cloudreg.datasets.diffeomorphism import Deformation, TrueMap
from cloudreg.datasets.phantom import Phantom
from cloudreg.datasets.sample import Sample
from cloudreg.datasets.truth import DemoTruth

__all__ = [
    "DEMO",
    "Deformation",
    "DemoScore",
    "DemoSize",
    "DemoTruth",
    "Phantom",
    "Sample",
    "TrueMap",
    "make_acquisition",
    "score_demo",
]
