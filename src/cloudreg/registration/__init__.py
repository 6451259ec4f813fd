"""EM-LDDMM registration of a brain to an atlas.

`register_volume` reads and fits, `write_registration` leaves a folder, `open_registration` opens it again. The
mathematics is in `solver`, from the inside out: `kernels`, `flow`, `contrast`, `smoothness`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = ("folder", "register", "trust")


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: the program that compiles the kernels (`ahead`) needs little of the rest."""
    if name in __all__:
        for module in _MODULES:
            found = getattr(import_module(f"{__name__}.{module}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
