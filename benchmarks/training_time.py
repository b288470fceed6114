"""How long the zoo's recipes train, in CPU seconds of one thread.

Run it as ``python -m benchmarks.training_time [--store] NAME ...``.

The times stand in ``training_time.json``, beside what they were measured with. No notebook shows them: they differ
from machine to machine.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.tasks import processor
from modelsec import zoo

FILE = Path(__file__).with_suffix(".json")


def measure(name: str, store: bool = False, seed: int = 0) -> dict[str, Any]:
    """Train a recipe once; loading the data and the test are counted too, and take little."""
    start = time.process_time()
    model, accuracy = zoo.make(name, seed)
    spent = time.process_time() - start
    if store:
        zoo.store(name, model, accuracy, seed)
    return {
        "cpu_seconds": round(spent, 1),
        "clean_accuracy": accuracy.value,
        "n": accuracy.n,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "processor": processor(),
    }


def main(names: list[str], store: bool = False) -> None:
    """Measure, print and keep; with ``store`` the weights too, as ``zoo make --store`` does."""
    torch.set_num_threads(1)
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in names:
        known[name] = measure(name, store)
        print(name, known[name], flush=True)
        FILE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--store"], "--store" in sys.argv)
