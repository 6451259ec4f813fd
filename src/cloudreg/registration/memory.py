"""What past steps tell about the curvature that Gauss-Newton does not see.

Gauss-Newton knows the data term's curvature at fixed contrast and fixed posteriors. Both follow the velocity, and so
the objective's true curvature along directions in which contrast and motion explain the same is smaller by far: there
it would take many times as many steps. How the derivative changed over the last steps, contrasts and mixtures estimated
anew between them, tells that curvature (the derivative of an objective whose other unknowns are at their best is the
derivative at these). So each Gauss-Newton step is put right by the last pairs of a step and a change of the derivative,
as L-BFGS puts right a multiple of the identity (Nocedal, Math. Comp. 35:773-782, 1980).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from cloudreg.registration.backend import Field
from cloudreg.registration.smoothness import Motion, dot


class Memory:
    """The last steps, each with the change of the derivative that it made.

    Parameters
    ----------
    length
        Number of steps.
    """

    def __init__(self, length: int = 8) -> None:
        self._pairs: deque[tuple[Motion, Field, float]] = deque(maxlen=length)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to put right."""
        return not self._pairs

    def forget(self) -> None:
        """Start anew: the objective is another."""
        self._pairs.clear()

    def remember(self, step: Motion, before: Field, after: Field) -> None:
        """Take up a step and the momenta that pointed downhill before and after it."""
        change = before - after
        curvature = dot(step.velocity, change)
        # Along a direction of negative curvature no quadratic has a minimum.
        if curvature > 0:
            self._pairs.append((step, change, curvature))

    def improved(self, downhill: Field, solve: Callable[[Field], Motion]) -> Motion:
        """Return the step for a momentum that points downhill.

        Parameters
        ----------
        downhill
            Minus the derivative by the velocity.
        solve
            The step by what is known without the memory.
        """
        shares = []
        for step, change, curvature in reversed(self._pairs):
            shares.append(dot(step.velocity, downhill) / curvature)
            downhill = downhill - shares[-1] * change
        result = solve(downhill)
        for (step, change, curvature), share in zip(self._pairs, reversed(shares), strict=True):
            result = result.plus(share - dot(result.velocity, change) / curvature, step)
        return result
