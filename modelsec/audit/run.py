"""The audit itself: check what is given, then let every section measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from modelsec.attacks.common import Model, Objective, check_inputs, check_norm, check_radius
from modelsec.audit.parts import RADII, Registered, Section, Subject, registry
from modelsec.audit.parts import sections as all_sections
from modelsec.audit.reliability import rivals
from modelsec.audit.report import Report
from modelsec.audit.sanity import CHECKS, outcome
from modelsec.data import Data
from modelsec.losses import cross_entropy
from modelsec.plot import use_style
from modelsec.tables import Table
from modelsec.training import inference, progress_bar

__all__ = ["audit", "checklist"]


def audit(
    model: Model,
    data: Data | tuple[Tensor, Tensor],
    *,
    name: str | None = None,
    n: int = 1000,
    norm: str = "linf",
    radii: Sequence[float] | None = None,
    sections: Iterable[str] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Measure a model and write its audit card.

    A section that can't be measured (a model without gradients, data without a training half) is
    marked as skipped, with the reason; the others go on. Ctrl-C ends the audit and keeps the
    sections that are finished.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K); a module is audited in eval
            mode and left as it was.
        data: a :class:`~modelsec.data.Data`, or a pair (x, y) of test images and labels.
        name: what the card calls the model; its class's name if None.
        n: how many test images to use at most.
        norm: "linf", "l2" or "l1", for the attacks.
        radii: sizes of the attacks in pixels of [0, 1]; a usual set if None.
        sections: which sections, by name; all if None.
        seed: for all that is drawn.
        progress: show a bar; None means yes, unless MODELSEC_PROGRESS=0 is set.

    Returns:
        The :class:`~modelsec.audit.report.Report`.

    Raises:
        TypeError, ValueError: for a model, data or options of the wrong kind; the message says
            what is wanted.
    """
    wanted = _wanted(sections)
    subject = _subject(model, data, name, n, norm, radii, seed)
    found: list[Section] = []
    interrupted = False
    bar = progress_bar(len(wanted), "audit", progress)
    try:
        with inference(model), plt.rc_context(), plt.ioff():
            use_style()
            for entry in wanted:
                bar.set_postfix_str(entry.title)
                result = _measure(entry, subject)
                found.append(replace(result, name=entry.name, title=entry.title))
                bar.update()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
    return Report(subject, tuple(found), interrupted)


def checklist(
    model: Model,
    data: Data | tuple[Tensor, Tensor],
    *,
    n: int = 200,
    norm: str = "linf",
    radii: Sequence[float] | None = None,
    substitute: Model | None = None,
    seed: int = 0,
) -> Table:
    """Which sanity checks hold on a model: may an attack that failed be believed?

    They are those of the audit's sections "sanity" and "reliability". A check that fails names
    something to look into. That all hold proves nothing: the paper calls its list neither
    necessary nor sufficient.

    Args:
        model: maps images (N, C, H, W) in [0, 1] to logits (N, K).
        data: a :class:`~modelsec.data.Data`, or a pair (x, y) of test images and labels.
        n: how many test images to use at most; more than 200 sharpen some of the checks.
        norm: "linf", "l2" or "l1", for the attacks.
        radii: sizes of the attacks in pixels of [0, 1]; a usual set if None.
        substitute: another model for the same images; a transfer attack from it is tried too.
        seed: for all that is drawn.

    Returns:
        One row per check: what should hold, whether it does, what was seen.

    Raises:
        TypeError, ValueError: for a model, data or options of the wrong kind.

    References:
        Carlini et al. (2019), On evaluating adversarial robustness,
        https://arxiv.org/abs/1902.06705, section 3.
    """
    subject = _subject(model, data, None, n, norm, radii, seed)
    if substitute is not None:
        subject.cache["substitute"] = substitute
    with inference(model):
        seen = {what: outcome(check, subject) for what, check in CHECKS.items()}
        seen |= {what: outcome(check, subject) for what, check in rivals(subject).items()}
    return Table(
        {"what should hold": what, "holds": "yes" if holds else "no", "seen": found}
        for what, (holds, found) in seen.items()
    )


def _measure(entry: Registered, subject: Subject) -> Section:
    try:
        found = entry.measure(subject)
    except (ValueError, TypeError, NotImplementedError) as error:
        return Section(f"Not measured: {error}", "skipped")
    if found.figure is not None:
        plt.close(found.figure)  # the report draws it; a notebook must not draw it once more
    return found


def _wanted(names: Iterable[str] | None) -> list[Registered]:
    known = all_sections()
    if isinstance(names, str):
        raise TypeError(f"sections must be a list of names, got the text {names!r}")
    chosen = set(known if names is None else names)
    if unknown := sorted(chosen - set(known)):
        raise ValueError(f"no section {', '.join(map(repr, unknown))}; there are {list(known)}")
    if not chosen:
        raise ValueError(f"sections must name at least one of {list(known)}")
    return [registry[key] for key in known if key in chosen]


def _subject(
    model: Model,
    data: Data | tuple[Tensor, Tensor],
    name: str | None,
    n: int,
    norm: str,
    radii: Sequence[float] | None,
    seed: int,
) -> Subject:
    """Check everything that the sections rely on, before the first of them takes its time."""
    if isinstance(data, tuple) and len(data) == 2:
        x, y = data
        data = Data("the given data", x[:0], y[:0], x, y, (), "given", "not stated")
    if not isinstance(data, Data):
        raise TypeError(
            f"data must be a modelsec.data.Data or a pair (x, y), got {type(data).__name__}"
        )
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number, 1 or more, got {n!r}")
    ball = check_norm(norm)
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    if parameter is not None:
        data = data.to(parameter.device)
    x, y = check_inputs(model, data.x_test[:n], data.y_test[:n])
    if not len(x):
        raise ValueError("the data hold no test images")
    sizes = RADII[norm] if radii is None else tuple(sorted(float(r) for r in radii))
    if not sizes or not sizes[0] > 0:
        raise ValueError(f"radii must be positive numbers, at least one, got {radii}")
    check_radius(sizes[-1], x, ball)
    with inference(model), torch.no_grad():
        objective = Objective(model, cross_entropy, targeted=False)
        try:
            objective(x[:8], y[:8])
        except RuntimeError as error:  # torch's own, about shapes
            shape = tuple(x.shape[1:])
            raise ValueError(f"the model can't take images of shape {shape}: {error}") from error
    return Subject(model, data, name or _name(model), n, norm, sizes, seed)


def _name(model: Model) -> str:
    return (
        type(model).__name__
        if isinstance(model, nn.Module)
        else getattr(model, "__name__", "model")
    )
