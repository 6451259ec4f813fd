"""The solver's hot loops on a GPU: torch's arrays and Triton's kernels. Nothing else imports torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from cloudreg.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from cloudreg.registration.backend import Backend


def require_cuda() -> None:
    """Raise in one line if torch or Triton isn't installed, or there's no CUDA device; see `cuda_backend`."""
    for package in ("torch", "triton"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, "gpu") from error
    import torch

    if not torch.cuda.is_available():
        reason = "there is none" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise InputError(f"expected a CUDA device for --device cuda, but {reason}: take --device cpu")


def cuda_backend(report: Callable[[str], None]) -> Backend:
    """Return a backend on the first CUDA device; see `cloudreg.registration.backend.backend_for`."""
    require_cuda()
    from cloudreg.registration.gpu.backend import TorchBackend

    return TorchBackend("cuda", report=report)
