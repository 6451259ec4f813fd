"""What the digital phantom is made of: its regions with their ontology, and the greys of its tissues.

Every region is one `Structure`; its number is its place in the tables here, and `STRUCTURE_IDS` gives the id that the
label volume holds. A region can consist of several tissues (a cortical area has layers), and a tissue has one grey per
contrast.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Structure(IntEnum):
    """The regions, in the order of `STRUCTURE_IDS`; 0 is outside the brain."""

    OUTSIDE = 0
    MOTOR_UPPER = 1
    MOTOR_DEEP = 2
    SOMATOSENSORY_UPPER = 3
    SOMATOSENSORY_DEEP = 4
    VISUAL_UPPER = 5
    VISUAL_DEEP = 6
    AUDITORY_UPPER = 7
    AUDITORY_DEEP = 8
    CINGULATE = 9
    RETROSPLENIAL = 10
    ORBITAL = 11
    INSULAR = 12
    ENTORHINAL = 13
    PIRIFORM = 14
    OLFACTORY_BULB = 15
    OLFACTORY_NUCLEUS = 16
    OLFACTORY_TUBERCLE = 17
    CA1 = 18
    CA3 = 19
    DENTATE_GYRUS = 20
    SUBICULUM = 21
    CAUDOPUTAMEN = 22
    ACCUMBENS = 23
    SEPTUM = 24
    PALLIDUM = 25
    BASAL_FOREBRAIN = 26
    AMYGDALA = 27
    THALAMUS_MEDIAL = 28
    THALAMUS_LATERAL = 29
    HABENULA = 30
    HYPOTHALAMUS = 31
    SUPERIOR_COLLICULUS = 32
    INFERIOR_COLLICULUS = 33
    PERIAQUEDUCTAL_GREY = 34
    SUBSTANTIA_NIGRA = 35
    MIDBRAIN = 36
    PONS = 37
    MEDULLA = 38
    TRIGEMINAL = 39
    INFERIOR_OLIVE = 40
    VERMIS = 41
    CEREBELLAR_HEMISPHERE = 42
    CEREBELLAR_NUCLEI = 43
    ARBOR_VITAE = 44
    CALLOSUM = 45
    ANTERIOR_COMMISSURE = 46
    CAPSULE = 47
    FIMBRIA = 48
    OPTIC_TRACT = 49
    PYRAMIDAL_TRACT = 50
    LATERAL_VENTRICLE = 51
    THIRD_VENTRICLE = 52
    FOURTH_VENTRICLE = 53


class Tissue(IntEnum):
    """What a voxel is made of, in the order of `GREYS`."""

    NOTHING = 0
    FLUID = 1
    WHITE = 2
    LAYER_1 = 3
    LAYER_23 = 4
    LAYER_4 = 5
    LAYER_5 = 6
    LAYER_6 = 7
    DENSE_CELLS = 8
    NEUROPIL = 9
    STRIATUM = 10
    THALAMUS = 11
    HYPOTHALAMUS = 12
    BRAINSTEM = 13
    MOLECULAR = 14
    GRANULAR = 15
    NUCLEUS = 16
    PALLIDUM = 17
    COLLICULUS = 18
    GLOMERULI = 19


# Id in the label volume, acronym, name, acronym of the parent. Some ids need more than 15 bits and one needs all 32,
# as in real atlases.
_LEAVES: tuple[tuple[int, str, str, str | None], ...] = (
    (11, "MOu", "Motor area, layers 1-4", "MO"),
    (12, "MOd", "Motor area, layers 5-6", "MO"),
    (21, "SSu", "Somatosensory area, layers 1-4", "SS"),
    (22, "SSd", "Somatosensory area, layers 5-6", "SS"),
    (31, "VISu", "Visual area, layers 1-4", "VIS"),
    (312782574, "VISd", "Visual area, layers 5-6", "VIS"),
    (41, "AUDu", "Auditory area, layers 1-4", "AUD"),
    (42, "AUDd", "Auditory area, layers 5-6", "AUD"),
    (50, "ACA", "Anterior cingulate area", "CTX"),
    (60, "RSP", "Retrosplenial area", "CTX"),
    (70, "ORB", "Orbital area", "CTX"),
    (80, "AI", "Agranular insular area", "CTX"),
    (90, "ENT", "Entorhinal area", "HPF"),
    (100, "PIR", "Piriform area", "OLF"),
    (110, "MOB", "Main olfactory bulb", "OLF"),
    (120, "AON", "Anterior olfactory nucleus", "OLF"),
    (130, "OT", "Olfactory tubercle", "STR"),
    (382, "CA1", "Field CA1", "HPF"),
    (463, "CA3", "Field CA3", "HPF"),
    (726, "DG", "Dentate gyrus", "HPF"),
    (502, "SUB", "Subiculum", "HPF"),
    (672, "CP", "Caudoputamen", "STR"),
    (56, "ACB", "Nucleus accumbens", "STR"),
    (242, "LS", "Septum", "STR"),
    (1022, "GP", "Globus pallidus", "PAL"),
    (342, "SI", "Substantia innominata", "PAL"),
    (40_131, "AMY", "Amygdala", "CNU"),
    (571, "MTN", "Medial thalamus", "TH"),
    (709, "VP", "Lateral thalamus", "TH"),
    (483, "HB", "Habenula", "TH"),
    (1097, "HY", "Hypothalamus", "IB"),
    (302, "SC", "Superior colliculus", "MB"),
    (4, "IC", "Inferior colliculus", "MB"),
    (795, "PAG", "Periaqueductal grey", "MB"),
    (374, "SN", "Substantia nigra", "MB"),
    (128, "MRN", "Midbrain reticular nucleus", "MB"),
    (771, "P", "Pons", "HB3"),
    (354, "MY", "Medulla", "HB3"),
    (429, "SPV", "Spinal nucleus of the trigeminal", "MY"),
    (83, "IO", "Inferior olivary complex", "MY"),
    (645, "VERM", "Vermal regions", "CBX"),
    (1073, "HEM", "Hemispheric regions", "CBX"),
    (519, "CBN", "Cerebellar nuclei", "CB"),
    (728, "arb", "Arbor vitae", "fiber tracts"),
    (776, "cc", "Corpus callosum", "fiber tracts"),
    (900, "ac", "Anterior commissure", "fiber tracts"),
    (614_454_277, "int", "Internal capsule", "fiber tracts"),
    (603, "fi", "Fimbria", "fiber tracts"),
    (125, "opt", "Optic tract", "fiber tracts"),
    (3_000_000_017, "py", "Pyramidal tract", "fiber tracts"),
    (81, "VL", "Lateral ventricle", "VS"),
    (129, "V3", "Third ventricle", "VS"),
    (145, "V4", "Fourth ventricle and aqueduct", "VS"),
)

_GROUPS: tuple[tuple[int, str, str, str | None], ...] = (
    (997, "root", "root", None),
    (8, "grey", "Basic cell groups and regions", "root"),
    (567, "CH", "Cerebrum", "grey"),
    (688, "CTX", "Cerebral cortex", "CH"),
    (500, "MO", "Motor area", "CTX"),
    (453, "SS", "Somatosensory area", "CTX"),
    (669, "VIS", "Visual area", "CTX"),
    (247, "AUD", "Auditory area", "CTX"),
    (698, "OLF", "Olfactory areas", "CTX"),
    (1089, "HPF", "Hippocampal formation", "CTX"),
    (623, "CNU", "Cerebral nuclei", "CH"),
    (477, "STR", "Striatum", "CNU"),
    (803, "PAL", "Pallidum", "CNU"),
    (343, "BS", "Brain stem", "grey"),
    (1129, "IB", "Interbrain", "BS"),
    (549, "TH", "Thalamus", "IB"),
    (313, "MB", "Midbrain", "BS"),
    (1065, "HB3", "Hindbrain", "BS"),
    (512, "CB", "Cerebellum", "grey"),
    (528, "CBX", "Cerebellar cortex", "CB"),
    (1009, "fiber tracts", "Fibre tracts", "root"),
    (73, "VS", "Ventricular systems", "root"),
)

STRUCTURE_IDS: NDArray[np.uint32] = np.array([0, *(row[0] for row in _LEAVES)], dtype=np.uint32)
"""Id in the label volume of each `Structure`."""


ONTOLOGY: tuple[tuple[int, str, str, int | None], ...] = tuple(
    (number, acronym, name, None if parent is None else {a: i for i, a, _, _ in (*_GROUPS, *_LEAVES)}[parent])
    for number, acronym, name, parent in (*_GROUPS, *_LEAVES)
)
"""Id, acronym, name and id of the parent of every region and group, parents before children."""

GREYS: NDArray[np.float32] = np.array(
    [
        # Template (autofluorescence), channel 0 (nuclei), channel 1 (a protein of some projection neurons).
        (0.00, 0.00, 0.00),  # nothing
        (0.06, 0.05, 0.03),  # fluid
        (0.33, 0.28, 0.80),  # white
        (0.86, 0.36, 0.28),  # layer 1
        (0.76, 0.62, 0.46),  # layer 2/3
        (0.70, 0.80, 0.34),  # layer 4
        (0.64, 0.58, 0.72),  # layer 5
        (0.58, 0.68, 0.52),  # layer 6
        (0.46, 1.30, 0.40),  # dense cells
        (0.80, 0.48, 0.36),  # neuropil
        (0.67, 0.66, 0.62),  # striatum
        (0.52, 0.56, 0.44),  # thalamus
        (0.74, 0.52, 0.30),  # hypothalamus
        (0.48, 0.46, 0.54),  # brainstem
        (0.90, 0.34, 0.26),  # molecular
        (0.55, 1.10, 0.38),  # granular
        (0.60, 0.60, 0.66),  # nucleus
        (0.42, 0.40, 0.70),  # pallidum
        (0.78, 0.60, 0.34),  # colliculus
        (0.95, 0.70, 0.58),  # glomeruli
    ],
    dtype=np.float32,
)
"""Grey of each tissue (rows) in each contrast (columns), tissue of average brightness about 0.6.

The relation between the first column and the other two rises and falls and is not one function: tissues that are
alike in the template differ in the channels, as in real brains.
"""

_GAINS: dict[Structure, tuple[float, float, float]] = {
    Structure.MOTOR_UPPER: (1.0, 0.92, 1.15),
    Structure.MOTOR_DEEP: (1.0, 0.95, 1.2),
    Structure.SOMATOSENSORY_UPPER: (1.0, 1.12, 0.95),
    Structure.VISUAL_UPPER: (1.0, 1.2, 0.85),
    Structure.VISUAL_DEEP: (1.0, 1.05, 0.85),
    Structure.CINGULATE: (1.03, 0.95, 1.1),
    Structure.RETROSPLENIAL: (0.97, 1.15, 0.8),
    Structure.INSULAR: (1.05, 0.9, 1.1),
    Structure.PIRIFORM: (1.05, 1.0, 0.8),
    Structure.CA3: (0.95, 0.95, 1.35),
    Structure.DENTATE_GYRUS: (1.0, 1.1, 0.8),
    Structure.ACCUMBENS: (0.95, 1.1, 1.4),
    Structure.AMYGDALA: (1.15, 0.9, 0.9),
    Structure.SUBSTANTIA_NIGRA: (0.8, 0.75, 1.2),
    Structure.MEDULLA: (1.0, 0.9, 1.1),
    Structure.ANTERIOR_COMMISSURE: (0.9, 0.85, 1.15),
}
GAINS: NDArray[np.float32] = np.array([_GAINS.get(s, (1.0, 1.0, 1.0)) for s in Structure], dtype=np.float32)
"""Factor on the grey of a tissue where it lies in this structure (rows), in each contrast (columns)."""
