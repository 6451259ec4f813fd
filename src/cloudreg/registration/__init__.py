"""EM-LDDMM registration of a brain to an atlas.

`register_volume` reads and fits, `write_registration` leaves a folder, `open_registration` opens it again. The
mathematics is in `solver`, from the inside out: `kernels`, `flow`, `contrast`, `smoothness`.
"""

from cloudreg.registration.folder import OpenRegistration, open_registration, write_registration
from cloudreg.registration.register import Registration, register_volume
from cloudreg.registration.trust import read_doubts

__all__ = [
    "OpenRegistration",
    "Registration",
    "open_registration",
    "read_doubts",
    "register_volume",
    "write_registration",
]
