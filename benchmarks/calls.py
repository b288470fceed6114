"""The attacks that run the gauntlet: every library's documented calls, behind one and the same call.

Each call stands here as a user would write it, and as the page shows it. Options that are not named
keep the library's defaults. A library whose own attack is missing is not given another one's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.libraries import installed, without_visdom
from modelsec import attacks
from modelsec.attacks.minimum_norm import Minimum, carlini_wagner, deepfool, fmn
from modelsec.threat import registry

ORDER = {"linf": np.inf, "l2": 2, "l1": 1}


@dataclass(frozen=True)
class Ask:
    """What a probe asks of an attack. Attacks without a budget ignore ``eps``.

    Attributes:
        eps: radius, in units of a pixel's range.
        steps: steps of an attack with a budget.
        random_start: begin at a random point.
        targeted: the labels are targets.
        classes: how many the model has.
        search: steps of the Carlini-Wagner attack for each of its constants. ART's steps each search
            along a line, so it gets a fifth of them.
        generator: for the libraries that take one.
    """

    eps: float = 0.1
    steps: int = 20
    random_start: bool = False
    targeted: bool = False
    classes: int = 10
    search: int = 200
    generator: torch.Generator | None = None

    @property
    def step_size(self) -> float:
        """Long enough to cross the ball and come back; nobody's exceeds the radius."""
        return min(2.5 * self.eps / self.steps, self.eps)


class Answer(NamedTuple):
    """What an attack returned.

    Attributes:
        adv: (N, ...) images.
        found: (N,) bool, if the library says where it succeeded; None if it leaves that to the user.
    """

    adv: Tensor
    found: Tensor | None = None


Run = Callable[[nn.Module, Tensor, Tensor, Ask], "Tensor | Answer"]


@dataclass(frozen=True)
class Attack:
    """One attack of one library.

    Attributes:
        kind: what it is, for example "pgd l2"; probes say which kinds they try.
        call: how a user writes it.
        run: runs it.
    """

    kind: str
    call: str
    run: Run

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, ask: Ask | None = None) -> Answer:
        """Run it on a batch."""
        answer = self.run(model, x, y, ask or Ask())
        return answer if isinstance(answer, Answer) else Answer(answer)

    @property
    def norm(self) -> str:
        """The norm that it measures in."""
        return self.kind.split()[-1]


@dataclass(frozen=True)
class Library:
    """A library and its attacks.

    Attributes:
        name: as the page shows it.
        package: its distribution.
        load: imports it and returns its attacks.
        says: probe -> what the library's documentation says about it, where a failing probe is what
            its authors announce.
    """

    name: str
    package: str
    load: Callable[[], list[Attack]]
    says: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        return installed(self.package)


def of_modelsec() -> list[Attack]:
    """This book's."""

    def budget(attack: Callable[..., Tensor], norm: str) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            size = {"step_size": ask.step_size} if attack is attacks.pgd else {}
            return attack(
                model, x, y, eps=ask.eps, norm=norm, steps=ask.steps, targeted=ask.targeted,
                random_start=ask.random_start, generator=ask.generator, **size,
            )  # fmt: skip

        return run

    def nearest(attack: Callable[..., Minimum], **options: Any) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Answer:
            extra: dict[str, Any] = {"targeted": True} if ask.targeted else {}
            if attack is carlini_wagner:
                extra["steps"] = ask.search
            found = attack(model, x, y, **options, **extra)
            return Answer(found.adv, found.found)

        return run

    found = [
        Attack(
            f"{name} {norm}",
            f'attacks.{name}(model, x, y, eps=eps, norm="{norm}", steps=steps)',
            budget(function, norm),
        )
        for name, function in (("pgd", attacks.pgd), ("apgd", attacks.apgd))
        for norm in registry[name].threat.norms
    ]
    return [
        *found,
        Attack("deepfool l2", "attacks.deepfool(model, x, y)", nearest(deepfool)),
        Attack(
            "cw l2", "attacks.carlini_wagner(model, x, y, steps=steps)", nearest(carlini_wagner)
        ),
        Attack("fmn l2", 'attacks.fmn(model, x, y, norm="l2")', nearest(fmn, norm="l2")),
        Attack("fmn linf", 'attacks.fmn(model, x, y, norm="linf")', nearest(fmn, norm="linf")),
    ]


def of_torchattacks() -> list[Attack]:
    """Modes by its methods; labels become targets with ``set_mode_targeted_by_label``."""
    import torchattacks as peer

    def use(make: Callable[[nn.Module, Ask], Any]) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            attack = make(model, ask)
            if ask.targeted:
                if "targeted" not in attack.supported_mode:
                    raise NotImplementedError("it has no targeted mode")
                attack.set_mode_targeted_by_label(quiet=True)
            return attack(x, y)

        return run

    def pgd(kind: Any) -> Run:
        return use(
            lambda model, ask: kind(
                model, eps=ask.eps, alpha=ask.step_size, steps=ask.steps,
                random_start=ask.random_start,
            )
        )  # fmt: skip

    def auto(norm: str) -> Run:
        return use(lambda model, ask: peer.APGD(model, norm=norm, eps=ask.eps, steps=ask.steps))

    return [
        Attack("pgd linf", "torchattacks.PGD(model, eps, alpha, steps)(x, y)", pgd(peer.PGD)),
        Attack("pgd l2", "torchattacks.PGDL2(model, eps, alpha, steps)(x, y)", pgd(peer.PGDL2)),
        Attack(
            "apgd linf", 'torchattacks.APGD(model, norm="Linf", eps, steps)(x, y)', auto("Linf")
        ),
        Attack("apgd l2", 'torchattacks.APGD(model, norm="L2", eps, steps)(x, y)', auto("L2")),
        Attack(
            "deepfool l2",
            "torchattacks.DeepFool(model)(x, y)",
            use(lambda model, _: peer.DeepFool(model)),
        ),
        Attack(
            "cw l2",
            "torchattacks.CW(model, steps=steps)(x, y)",
            use(lambda model, ask: peer.CW(model, steps=ask.search)),
        ),
    ]


def of_foolbox() -> list[Attack]:
    """Each run is ``attack(PyTorchModel(model, (0, 1)), x, criterion, epsilons=...)``."""
    import foolbox as peer

    def use(make: Callable[[Ask], Any], budget: bool = True) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Answer:
            wrapped = peer.PyTorchModel(model, bounds=(0, 1))
            kind = (
                peer.criteria.TargetedMisclassification
                if ask.targeted
                else peer.criteria.Misclassification
            )
            epsilon = ask.eps if budget else None
            _, clipped, success = make(ask)(wrapped, x, kind(y), epsilons=epsilon)
            return Answer(clipped, success)

        return run

    def gradient(kind: Any) -> Run:
        return use(
            lambda ask: kind(
                abs_stepsize=ask.step_size, steps=ask.steps, random_start=ask.random_start
            )
        )

    def call(name: str, options: str, epsilons: str) -> str:
        return f"fb.attacks.{name}({options})(fmodel, x, criterion, epsilons={epsilons})"

    descent = "abs_stepsize, steps, random_start"
    kinds = peer.attacks
    return [
        Attack("pgd linf", call("LinfPGD", descent, "eps"), gradient(kinds.LinfPGD)),
        Attack("pgd l2", call("L2PGD", descent, "eps"), gradient(kinds.L2PGD)),
        Attack("pgd l1", call("L1PGD", descent, "eps"), gradient(kinds.L1PGD)),
        Attack(
            "sparse l1",
            call("SparseL1DescentAttack", descent, "eps"),
            gradient(kinds.SparseL1DescentAttack),
        ),
        Attack(
            "deepfool l2",
            call("L2DeepFoolAttack", "", "None"),
            use(lambda _: kinds.L2DeepFoolAttack(), budget=False),
        ),
        Attack(
            "cw l2",
            call("L2CarliniWagnerAttack", "steps=steps", "None"),
            use(lambda ask: kinds.L2CarliniWagnerAttack(steps=ask.search), budget=False),
        ),
        Attack(
            "fmn l2",
            call("L2FMNAttack", "", "None"),
            use(lambda _: kinds.L2FMNAttack(), budget=False),
        ),
        Attack(
            "fmn linf",
            call("LInfFMNAttack", "", "None"),
            use(lambda _: kinds.LInfFMNAttack(), budget=False),
        ),
    ]


def of_art() -> list[Attack]:
    """Each run is ``attack.generate(x, y)`` on a ``PyTorchClassifier`` with clip values (0, 1)."""
    from art.attacks import evasion as peer
    from art.estimators.classification import PyTorchClassifier

    def use(make: Callable[[Any, Ask, int], Any]) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            wrapped = PyTorchClassifier(
                model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), ask.classes, clip_values=(0, 1),
                device_type="cpu",
            )  # fmt: skip
            attack = make(wrapped, ask, len(x))
            return torch.from_numpy(attack.generate(x.numpy(), y.numpy()))

        return run

    def pgd(norm: str) -> Run:
        return use(
            lambda wrapped, ask, n: peer.ProjectedGradientDescentPyTorch(
                wrapped, norm=ORDER[norm], eps=ask.eps, eps_step=ask.step_size, max_iter=ask.steps,
                targeted=ask.targeted, num_random_init=int(ask.random_start), batch_size=n,
                verbose=False,
            )
        )  # fmt: skip

    def auto(norm: str) -> Run:
        return use(
            lambda wrapped, ask, n: peer.AutoProjectedGradientDescent(
                wrapped, norm=ORDER[norm], eps=ask.eps, eps_step=2 * ask.eps, max_iter=ask.steps,
                targeted=ask.targeted, nb_random_init=1, batch_size=n, verbose=False,
            )
        )  # fmt: skip

    shown = {"linf": "np.inf", "l2": "2", "l1": "1"}
    return [
        *(
            Attack(
                f"pgd {norm}",
                f"ProjectedGradientDescentPyTorch(classifier, norm={shown[norm]}, eps, eps_step, "
                "max_iter).generate(x, y)",
                pgd(norm),
            )
            for norm in ORDER
        ),
        *(
            Attack(
                f"apgd {norm}",
                f"AutoProjectedGradientDescent(classifier, norm={shown[norm]}, eps, 2 * eps, "
                "max_iter, nb_random_init=1).generate(x, y)",
                auto(norm),
            )
            for norm in ORDER
        ),
        Attack(
            "deepfool l2",
            "DeepFool(classifier).generate(x, y)",
            use(lambda wrapped, ask, n: peer.DeepFool(wrapped, batch_size=n, verbose=False)),
        ),
        Attack(
            "cw l2",
            "CarliniL2Method(classifier, max_iter=steps).generate(x, y)",
            use(
                lambda wrapped, ask, n: peer.CarliniL2Method(
                    wrapped,
                    max_iter=ask.search // 5,
                    targeted=ask.targeted,
                    batch_size=n,
                    verbose=False,
                )
            ),
        ),
    ]


def of_adv_lib() -> list[Attack]:
    """Functions of (model, inputs, labels)."""
    without_visdom()
    import adv_lib.attacks as peer

    def linf(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
        return peer.pgd_linf(
            model, x, y, ask.eps, targeted=ask.targeted, steps=ask.steps,
            random_init=ask.random_start, absolute_step_size=ask.step_size,
        )  # fmt: skip

    def auto(norm: str) -> Run:
        return lambda model, x, y, ask: peer.apgd(
            model, x, y, ask.eps, norm=ORDER[norm], targeted=ask.targeted, n_iter=ask.steps,
            loss_function="ce",
        )  # fmt: skip

    def nearest(attack: Callable[..., Tensor], **options: Any) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            return attack(model, x, y, targeted=ask.targeted, **options)

        return run

    return [
        Attack("pgd linf", "pgd_linf(model, x, y, eps, absolute_step_size, steps)", linf),
        *(
            Attack(
                f"apgd {norm}",
                f"apgd(model, x, y, eps, norm={'inf' if norm == 'linf' else norm[1]}, n_iter, "
                'loss_function="ce")',
                auto(norm),
            )
            for norm in ORDER
        ),
        Attack("deepfool l2", "df(model, x, y)", nearest(peer.df)),
        Attack(
            "cw l2",
            "carlini_wagner_l2(model, x, y, max_iterations=steps)",
            lambda model, x, y, ask: peer.carlini_wagner_l2(
                model, x, y, targeted=ask.targeted, max_iterations=ask.search
            ),
        ),
        Attack(
            "fmn l2", "fmn(model, x, y, norm=2, steps=100)", nearest(peer.fmn, norm=2, steps=100)
        ),
        Attack(
            "fmn linf",
            "fmn(model, x, y, norm=inf, steps=100)",
            nearest(peer.fmn, norm=float("inf"), steps=100),
        ),
    ]


def of_cleverhans() -> list[Attack]:
    """Its functions for PyTorch, with the box given as clip_min and clip_max."""
    from cleverhans.torch.attacks.carlini_wagner_l2 import carlini_wagner_l2
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent
    from cleverhans.torch.attacks.sparse_l1_descent import sparse_l1_descent

    def pgd(norm: str) -> Run:
        return lambda model, x, y, ask: projected_gradient_descent(
            model, x, ask.eps, ask.step_size, ask.steps, ORDER[norm], clip_min=0, clip_max=1, y=y,
            targeted=ask.targeted, rand_init=ask.random_start,
        )  # fmt: skip

    def sparse(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
        return sparse_l1_descent(
            model, x, eps=ask.eps, eps_iter=ask.step_size, nb_iter=ask.steps, y=y, clip_min=0,
            clip_max=1, targeted=ask.targeted, rand_init=ask.random_start,
        )  # fmt: skip

    def cw(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
        return carlini_wagner_l2(
            model, x, ask.classes, y=y, targeted=ask.targeted, max_iterations=ask.search
        )

    call = "projected_gradient_descent(model, x, eps, eps_iter, nb_iter, {}, 0, 1, y)"
    return [
        Attack("pgd linf", call.format("np.inf"), pgd("linf")),
        Attack("pgd l2", call.format("2"), pgd("l2")),
        Attack("sparse l1", "sparse_l1_descent(model, x, eps, eps_iter, nb_iter, y, 0, 1)", sparse),
        Attack("cw l2", "carlini_wagner_l2(model, x, n_classes, y, max_iterations=steps)", cw),
    ]


def of_captum() -> list[Attack]:
    """Its tutorial hands cross-entropy to PGD; the default loss wants probabilities."""
    from captum.robust import PGD

    def pgd(norm: str) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            attack = PGD(model, nn.CrossEntropyLoss(reduction="none"), lower_bound=0, upper_bound=1)
            return attack.perturb(
                x, ask.eps, ask.step_size, ask.steps, y, targeted=ask.targeted,
                random_start=ask.random_start, norm=norm,
            )  # fmt: skip

        return run

    call = 'PGD(model, loss_func, 0, 1).perturb(x, radius, step_size, step_num, y, norm="{}")'
    return [
        Attack("pgd linf", call.format("Linf"), pgd("Linf")),
        Attack("pgd l2", call.format("L2"), pgd("L2")),
    ]


def of_secml_torch() -> list[Attack]:
    """Its own attacks alone (backend "native"); the others hand over to Foolbox or adv-lib."""
    from secmlt.adv.backends import Backends
    from secmlt.adv.evasion.fmn import FMN
    from secmlt.adv.evasion.perturbation_models import LpPerturbationModels as Models
    from secmlt.adv.evasion.pgd import PGD
    from secmlt.models.pytorch.base_pytorch_nn import BasePyTorchClassifier
    from torch.utils.data import DataLoader, TensorDataset

    models = {"linf": Models.LINF, "l2": Models.L2, "l1": Models.L1}

    def use(make: Callable[[Ask, int | None], Any]) -> Run:
        def run(model: nn.Module, x: Tensor, y: Tensor, ask: Ask) -> Tensor:
            # y_target is one class for all samples
            attack = make(ask, int(y[0]) if ask.targeted else None)
            data = DataLoader(TensorDataset(x, y), batch_size=len(x))
            done = attack(BasePyTorchClassifier(model), data)
            return torch.cat([batch for batch, _ in done])

        return run

    def pgd(norm: str) -> Run:
        return use(
            lambda ask, target: PGD(
                models[norm], ask.eps, ask.steps, ask.step_size, random_start=ask.random_start,
                y_target=target, backend=Backends.NATIVE,
            )
        )  # fmt: skip

    def nearest(norm: str) -> Run:
        return use(
            lambda ask, target: FMN(
                models[norm], num_steps=100, step_size=1.0, y_target=target, backend=Backends.NATIVE
            )
        )

    return [
        *(
            Attack(
                f"pgd {norm}",
                f'PGD("{norm}", epsilon, num_steps, step_size, backend="native")(model, loader)',
                pgd(norm),
            )
            for norm in ORDER
        ),
        *(
            Attack(
                f"fmn {norm}",
                f'FMN("{norm}", num_steps=100, step_size=1)(model, loader)',
                nearest(norm),
            )
            for norm in ("l2", "linf")
        ),
    ]


OURS = Library("modelsec", "modelsec", of_modelsec)
PEERS = [
    Library(
        "torchattacks",
        "torchattacks",
        of_torchattacks,
        says={
            "normalised_input": "torchattacks says that images must lie in [0, 1] (the docstring of "
            "each attack). It takes a normalisation by `set_normalization_used`.",
            "random_start": "torchattacks' APGD draws its start from a seed, 0 unless told otherwise "
            "(its docstring), so that it starts at the same point in every run.",
        },
    ),
    Library(
        "Foolbox",
        "foolbox",
        of_foolbox,
        says={
            "statistics": "Foolbox warns of a model in training mode when it is wrapped, and leaves "
            "it to the caller to call `eval()`."
        },
    ),
    Library("ART", "adversarial-robustness-toolbox", of_art),
    Library(
        "adv-lib",
        "adv-lib",
        of_adv_lib,
        says={
            "normalised_input": "adv-lib says that inputs should be in [0, 1] (the docstring of "
            "`apgd`)."
        },
    ),
    Library("CleverHans", "cleverhans", of_cleverhans),
    Library(
        "secml-torch",
        "secml-torch",
        of_secml_torch,
        says={
            "targets": "secml-torch takes `y_target`, one class for all samples (the docstring of "
            "`PGD`)."
        },
    ),
    Library("captum", "captum", of_captum),
]
