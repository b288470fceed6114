"""Install packages with pip and show that something happens: one line of progress, errors in full.

Run by the environment's own Python: `python tools/install.py WHAT PIP-ARGUMENT...`
"""

import re
import subprocess
import sys
import time

PIP = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]


def main(what: str, arguments: list[str]) -> int:
    """Run pip; print what it does in short, and the end of its own output if it fails."""
    start, lines, packages = time.monotonic(), [], 0
    print(f"Installing {what} ...", flush=True)
    what = what.partition(" (")[0]  # how long it may take is of interest beforehand
    with subprocess.Popen(
        [sys.executable, *PIP, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.append(line)
            if name := re.match(r"Collecting ([\w.-]+)", line):
                packages += 1
                show(f"{packages} packages, {seconds(start)}: {name[1]}", packages % 20 == 0)
            elif line.startswith("Installing collected"):
                show(f"{packages} packages, {seconds(start)}: unpacking", True)
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if pip.returncode:
        print("".join(lines[-15:]), file=sys.stderr)
        print(
            f"Installing {what} failed; pip's last lines stand above. "
            "Is there a network connection? The same command tries again.",
            file=sys.stderr,
        )
        return 1
    print(f"Installed {what} in {seconds(start)}.", flush=True)
    return 0


def show(text: str, milestone: bool) -> None:
    """Overwrite one line on a terminal; elsewhere, in a log, print the milestones only."""
    if sys.stdout.isatty():
        print(f"\r\033[K  {text}", end="", flush=True)
    elif milestone:
        print(f"  {text}", flush=True)


def seconds(start: float) -> str:
    """Tell the time since `start`."""
    return f"{time.monotonic() - start:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
