"""How exercises are graded: by what a solution does, never by how it is written.

A grader is a function decorated with :func:`grader`. It calls :func:`require` with a condition
and the sentence a learner reads when it fails. The decorator turns the outcome into
:class:`Feedback`, which a notebook shows; nothing is raised, so that a notebook with unfinished
exercises still runs from top to bottom.
"""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Feedback", "adversarial", "grader", "require"]

_SIGN = {"passed": "\N{CHECK MARK}", "not yet": "\N{BALLOT X}", "todo": "\N{WHITE CIRCLE}"}
_COLOR = {"passed": "#009e73", "not yet": "#d55e00", "todo": "#777777"}


@dataclass(frozen=True, repr=False)
class Feedback:
    """What a grader says.

    Attributes:
        status: "passed", "not yet" (something is wrong), or "todo" (the stub is unfilled).
        message: one or two sentences a learner can act on.
    """

    status: Literal["passed", "not yet", "todo"]
    message: str

    @property
    def passed(self) -> bool:
        """True if the solution was accepted."""
        return self.status == "passed"

    def __str__(self) -> str:
        return f"{_SIGN[self.status]} {self.message}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return (
            f'<div class="modelsec-feedback" style="border-left: 3px solid {_COLOR[self.status]}; '
            f'padding: 0.2em 0.8em">{html.escape(str(self), quote=False)}</div>'
        )


class _Rejected(Exception):
    """A requirement that does not hold; its message is for the learner."""


def require(condition: object, message: str) -> None:
    """Reject the solution with ``message`` unless ``condition`` is true.

    Inside a grader only.

    Args:
        condition: what holds for a right solution.
        message: says what was seen and what to look at next.
    """
    if not bool(condition):
        raise _Rejected(message)


def grader(praise: str) -> Callable[[Callable[[Any], None]], Callable[[Any], Feedback]]:
    """Make a grader of a function that calls :func:`require`.

    Args:
        praise: what to say when nothing was rejected: one sentence on what now is possible.

    Returns:
        A decorator; the decorated function takes the learner's solution, returns Feedback.
    """

    def decorate(examine: Callable[[Any], None]) -> Callable[[Any], Feedback]:
        @functools.wraps(examine)
        def grade(solution: Any) -> Feedback:
            if solution is ... or solution is None:
                return Feedback("todo", _TODO)
            try:
                # what a grader draws must not change what the reader's next cell draws
                with torch.random.fork_rng(devices=[]):
                    examine(_Watched(solution) if callable(solution) else solution)
            except (NotImplementedError, _Unfilled):
                return Feedback("todo", _TODO)
            except _Rejected as problem:
                return Feedback("not yet", str(problem))
            except Exception as error:  # a learner's function may raise anything
                if isinstance(error, TypeError) and not callable(solution):
                    return Feedback("not yet", "Pass the function itself, without brackets.")
                return Feedback("not yet", _explain(error))
            return Feedback("passed", f"Correct. {praise}")

        return grade

    return decorate


def adversarial(solution: Any, model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Run a learner's attack, and check what every attack in linf has to keep to.

    Args:
        solution: ``f(model, x, y, eps) -> adversarial images``.
        model: the network under attack.
        x: (N, ...) images in [0, 1].
        y: (N,) labels.
        eps: the radius.

    Returns:
        (N, ...) its images, of the right shape, within [0, 1] and eps; the model is unchanged.
    """
    before = [value.clone() for value in model.state_dict().values()]
    adv = solution(model, x.clone(), y.clone(), eps)
    require(isinstance(adv, Tensor), f"Return a tensor of images, not {type(adv).__name__}.")
    require(
        adv.shape == x.shape, f"Return images of shape {tuple(x.shape)}, not {tuple(adv.shape)}."
    )
    found: Tensor = adv.detach()
    require(bool((found >= 0).all() and (found <= 1).all()), "Some pixels are outside [0, 1].")
    most = float((found - x).abs().max())
    require(most <= eps + 1e-5, f"A pixel changes by {most:.3f}; eps is {eps}.")
    after = model.state_dict().values()
    require(all(map(torch.equal, before, after)), "The model's weights were changed.")
    return found


_TODO = "Not done yet: replace the ... with your code and run the cell again."


class _Unfilled(Exception):
    """The learner's function returned the stub's ``...``."""


class _Watched:
    """The learner's function; returning ``...`` from any call means that it is still a stub."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._function(*args, **kwargs)
        if result is ...:
            raise _Unfilled
        require(
            result is not None,
            "Your function returned None. Does its last line start with return?",
        )
        return result


def _explain(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "modelsec" not in f.filename and "site-packages" not in f.filename]
    where = f" (line {own[-1].lineno} of your cell: {own[-1].line})" if own and own[-1].line else ""
    return f"Your code raised {type(error).__name__}: {error}{where}"
