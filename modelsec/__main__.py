"""The command line: ``python -m modelsec``.

torch takes seconds to import, so each command imports what it needs when it is run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modelsec import __version__

__all__ = ["main", "parser"]

_OK, _PROBLEM, _USAGE, _STOPPED = 0, 1, 2, 130
_EPILOG = "python -m modelsec COMMAND --help tells a command's options."
_AUDIT = """examples:
  python -m modelsec audit --model zoo:net --data mnist --html card.html
  python -m modelsec audit --model mymodel:build \\
      --weights mymodel.safetensors --data mydata.npz

--model mymodel:build imports mymodel.py from this folder and calls
build(), which returns the model: from images (N, C, H, W) in [0, 1] to
logits (N, K). Normalisation belongs inside it. --data mydata.npz holds
x_test and y_test (x_train and y_train too, if you like): images as
above, and labels (N,), whole numbers from 0. Audit only models that are
yours, or that you have permission to test."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: its words; those of the command line if None.

    Returns:
        0 if all went well; 1 if something is not as it should be (a file that can't be fetched, a
        model that is not as recorded); 2 for bad input; 130 if it was stopped with Ctrl-C.
    """
    arguments = parser().parse_args(argv)
    from modelsec.fetch import FetchError

    if os.getcwd() not in sys.path:  # a script's path does not hold the current folder
        sys.path.insert(0, os.getcwd())
    try:
        return int(arguments.run(arguments))
    except (ValueError, TypeError, OSError, FetchError) as error:
        print(f"modelsec {arguments.command}: {error}", file=sys.stderr)
        return _PROBLEM if isinstance(error, FetchError) else _USAGE
    except KeyboardInterrupt:
        print(f"modelsec {arguments.command}: stopped", file=sys.stderr)
        return _STOPPED


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    form: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    top = argparse.ArgumentParser(
        prog="python -m modelsec",
        description="Model Security in Practice: audit a model, see to the book's models and data.",
        epilog=_EPILOG,
    )
    top.add_argument("--version", action="version", version=f"modelsec {__version__}")
    top.set_defaults(run=partial(_help, top))
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    about = "measure a model and write its audit card"
    command = commands.add_parser("audit", help=about, description=about, epilog=_AUDIT, **form)
    command.set_defaults(run=_audit)
    add = command.add_argument
    add("--model", required=True, help="zoo:NAME, or package.module:factory")
    add("--weights", metavar="FILE", help="FILE.safetensors, loaded into the model")
    add(
        "--data",
        default="mnist",
        help="mnist, mnist-full, fashion, FILE.npz, or package.module:function (default: mnist)",
    )
    add("--n", type=int, default=1000, help="test images to use at most (default: 1000)")
    add("--norm", default="linf", help="norm of the attacks: linf, l2 or l1 (default: linf)")
    add(
        "--radii",
        type=_number,
        nargs="+",
        metavar="EPS",
        help="sizes of the attacks, such as 8/255 or 0.1",
    )
    add(
        "--sections",
        nargs="+",
        metavar="NAME",
        help="only these sections; an unknown name shows the list",
    )
    add("--device", help="cpu, cuda, cuda:1, mps (default: the best at hand)")
    add("--seed", type=int, default=0, help="for everything random (default: 0)")
    add("--html", metavar="FILE", type=Path, help="write the card as a page, FILE.html")
    add("--json", metavar="FILE", type=Path, help="write the numbers, FILE.json")

    about = "the models and long results that ship with the package"
    command = commands.add_parser("zoo", help=about, description=about)
    command.set_defaults(run=partial(_help, command))
    zoo = command.add_subparsers(dest="action", metavar="ACTION")
    about = "name every model and long result"
    zoo.add_parser("list", help=about, description=about).set_defaults(run=_zoo_list)
    about = "check every file's hash, and measure every model again"
    zoo.add_parser("verify", help=about, description=about).set_defaults(run=_zoo_verify)
    about = "make some again from their recipes, and compare them with what is stored"
    action = zoo.add_parser("make", help=about, description=about)
    action.set_defaults(run=_zoo_make)
    action.add_argument("names", metavar="NAME", nargs="+", help="of a model or a long result")
    where = action.add_mutually_exclusive_group()
    where.add_argument("--out", metavar="DIR", type=Path, help="write it into this folder")
    where.add_argument(
        "--store", action="store_true", help="for authors: replace the file in the package"
    )

    about = "fetch a full data set; what is there whole stays, what is half there goes on"
    command = commands.add_parser("fetch", help=about, description=about)
    command.set_defaults(run=_fetch)
    command.add_argument(
        "names", metavar="NAME", nargs="*", help="mnist, fashion (none: list them)"
    )
    command.add_argument(
        "--to",
        metavar="DIR",
        type=Path,
        help="folder (default: $MODELSEC_DATA or ~/.cache/modelsec)",
    )

    about = "what the graders said in executed notebooks: one line a notebook"
    command = commands.add_parser("marks", help=about, description=about)
    command.set_defaults(run=_marks)
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help="notebooks")
    command.add_argument("--csv", metavar="FILE", type=Path, help="write every exercise's mark")

    about = "what is installed and at hand, what is missing, and the commands that mend it"
    command = commands.add_parser("doctor", help=about, description=about)
    command.set_defaults(run=_doctor)
    command.add_argument("--json", action="store_true", help="print JSON, for programs")
    return top


def _number(text: str) -> float:
    """A decimal number or a fraction."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number like 0.1 or 8/255") from None


def _help(of: argparse.ArgumentParser, _: argparse.Namespace) -> int:
    of.print_help()
    return _OK


def _audit(arguments: argparse.Namespace) -> int:
    for path, ending in ((arguments.html, ".html"), (arguments.json, ".json")):
        if path is not None and path.suffix != ending:
            raise ValueError(f"--{ending[1:]} wants a file name that ends in {ending}, got {path}")
        if path is not None and not path.parent.is_dir():  # before the minutes, not after them
            raise ValueError(f"there is no folder {path.parent}: make it first")
    from torch import nn

    from modelsec.audit import audit
    from modelsec.loading import check_fit, find_data, find_device, find_model

    device = find_device(arguments.device)
    model = find_model(arguments.model, arguments.weights)
    if isinstance(model, nn.Module):
        model = model.to(device)
    data = find_data(arguments.data).to(device)
    check_fit(model, data)
    report = audit(
        model,
        data,
        name=arguments.model.removeprefix("zoo:"),
        n=arguments.n,
        norm=arguments.norm,
        radii=arguments.radii,
        sections=arguments.sections,
        seed=arguments.seed,
    )
    print(report)
    for path in filter(None, (arguments.html, arguments.json)):
        print(f"\nwritten: {report.save(path)}", end="")
    print()
    return _STOPPED if report.interrupted else _OK


def _zoo_list(arguments: argparse.Namespace) -> int:
    from modelsec import zoo
    from modelsec.zoo.results import load_record, recorded
    from modelsec.zoo.verify import recorded_accuracy, size

    rows = [("NAME", "WHAT", "kB", "RECORDED", "ABOUT")]
    for name, entry in sorted(zoo.manifest().items()):
        accuracy = f"accuracy {recorded_accuracy(entry)}"
        rows.append((name, "model", f"{size(name) / 1000:.0f}", accuracy, entry["about"]))
    for name in recorded():
        record = load_record(name)
        seeds = f"n={record['n']}, {len(record['seeds'])} seeds"
        rows.append((name, "result", f"{size(name) / 1000:.0f}", seeds, record["about"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)).rstrip())
    return _OK


def _zoo_verify(arguments: argparse.Namespace) -> int:
    from modelsec.zoo.verify import verify

    wrong = 0
    for checked in verify():
        print(f"{'ok   ' if checked.ok else 'WRONG'}  {checked.name}: {checked.found}", flush=True)
        wrong += not checked.ok
    print(f"{wrong} not as recorded" if wrong else "all as recorded")
    return _PROBLEM if wrong else _OK


def _zoo_make(arguments: argparse.Namespace) -> int:
    from modelsec import zoo
    from modelsec.zoo.results import studies

    folder = arguments.out
    if folder is not None and not folder.is_dir():
        raise ValueError(f"there is no folder {folder}: make it first")
    makers = dict.fromkeys(studies(), _make_result) | dict.fromkeys(zoo.recipes, _make_model)
    for name in arguments.names:  # all of them are looked at before hours go into the first
        if name not in makers:
            known = [*zoo.names(), *studies()]
            raise ValueError(f"nothing in the zoo is called {name!r}; there are {known}")
    return max([makers[name](name, arguments) for name in arguments.names])


def _make_model(name: str, arguments: argparse.Namespace) -> int:
    from modelsec import zoo
    from modelsec.zoo.verify import recorded_accuracy

    entry = zoo.manifest().get(name)
    seed = entry["seed"] if entry else 0
    model, accuracy = zoo.make(name, seed)
    print(f"{name}: accuracy {accuracy}")
    if arguments.store:
        print(f"stored: {zoo.store(name, model, accuracy, seed)}")
    elif arguments.out:
        print(f"written: {zoo.write(model, arguments.out / f'{name}.safetensors')}")
    if entry is None:
        print("nothing was recorded to compare it with")
        return _OK
    stated = recorded_accuracy(entry)
    low, high = stated.interval
    inside = low <= accuracy.value <= high
    print(f"recorded: {stated}; the new one is {'inside' if inside else 'OUTSIDE'} that interval")
    return _OK if inside else _PROBLEM


def _make_result(name: str, arguments: argparse.Namespace) -> int:
    from modelsec.zoo.results import load_record, make_result, recorded, store_result
    from modelsec.zoo.verify import compare

    old = load_record(name) if name in recorded() else None
    if arguments.store or arguments.out:
        new = store_result(name, arguments.out)
        print(f"{name}: {'stored' if arguments.store else f'written into {arguments.out}'}")
    else:
        new = make_result(name)
    if old is None:
        print(f"{name}: nothing was recorded to compare it with")
        return _OK
    compared = list(compare(old["result"], new["result"], old["n"]))
    wrong = [row for row in compared if not row[3]]
    same = sum(before == now for _, before, now, _ in compared)
    for where, before, now, _ in wrong:
        print(f"DIFFERS  {where}: recorded {before}, now {now}")
    print(
        f"{name}: of {len(compared)} values {same} are the same, {len(compared) - len(wrong) - same} "
        f"differ by no more than chance explains, {len(wrong)} by more"
    )
    return _PROBLEM if wrong else _OK


def _fetch(arguments: argparse.Namespace) -> int:
    from modelsec.data import data_dir
    from modelsec.fetch import fetch, intact, sets

    target = arguments.to or data_dir()
    if not arguments.names:
        for name, data_set in sets.items():
            there = all(intact(file, target) for file in data_set.files())
            state = f"in {target}" if there else f"{data_set.megabytes} MB to fetch"
            print(f"{name:<10}{data_set.about} ({state})")
    for name in arguments.names:
        new = fetch(name, target)
        print(f"{name}: {len(new)} files fetched, all are whole, in {target}")
    return _OK


def _marks(arguments: argparse.Namespace) -> int:
    import csv

    from modelsec.check.marks import marks

    found = {path: marks(path) for path in arguments.files}  # all are read before one is printed
    wide = max(len(str(path)) for path in found)
    for path, said in found.items():
        passed = sum(status == "passed" for status in said.values())
        missing = ", ".join(
            f"{name}: {status}" for name, status in said.items() if status != "passed"
        )
        print(f"{path!s:<{wide}}  {passed} of {len(said)} passed  {missing}".rstrip())
    if arguments.csv:
        with arguments.csv.open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(("notebook", "exercise", "status"))
            rows.writerows((path, *row) for path, said in found.items() for row in said.items())
    return _OK


def _doctor(arguments: argparse.Namespace) -> int:
    from modelsec.doctor import as_json, as_text, examine, healthy

    checks = examine()
    print(json.dumps(as_json(checks), indent=2) if arguments.json else as_text(checks))
    return _OK if healthy(checks) else _PROBLEM


if __name__ == "__main__":
    sys.exit(main())
