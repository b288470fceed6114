"""The README's example runs as it stands."""

import re
from pathlib import Path

import torch

from modelsec.intervals import wilson

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    x = torch.rand(50, 1, 8, 8)
    y = model(2 * x - 1).argmax(1)  # the model is right about all of them: mean 0.5, std 0.5
    exec(code, {"model": model, "x": x, "y": y})
    clean, attacked = capsys.readouterr().out.splitlines()
    low, high = wilson(50, 50)
    assert clean == f"clean        1.000 [{low:.3f}, {high:.3f}], n=50"
    share, n = re.fullmatch(r"under attack (0\.\d+) \[0\.\d+, 0\.\d+\], n=(\d+)", attacked).groups()
    assert float(share) < 1
    assert n == "50"
