"""How blocks are run: a Dask cluster, a ledger of what is done, memory, progress."""

from cloudreg.execution.engine import Engine
from cloudreg.execution.ledger import Ledger
from cloudreg.execution.memory import memory_budget_bytes, require_free_space, require_writable

__all__ = ["Engine", "Ledger", "memory_budget_bytes", "require_free_space", "require_writable"]
