"""Where a number comes from: machine, versions, date, commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path


def provenance(device: str = "cpu") -> dict[str, str]:
    """What a reader needs to repeat a measurement; ``commit`` only where the package runs from a checkout."""
    import torch

    gpu = device.startswith("cuda") and torch.cuda.get_device_name(device)
    facts = {
        "date": date.today().isoformat(),
        "machine": gpu or f"{_processor()} ({platform.machine()}), {torch.get_num_threads()} thread(s)",
        **{name: version(name) for name in ("deepinv-dmilo", "deepinv", "diffusers", "torch")},
    }
    git = ["git", "-C", str(Path(__file__).parent)]
    with suppress(OSError, subprocess.CalledProcessError):
        # not a repository that merely has the environment in which the package is installed
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        answer = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        facts["commit"] = answer.stdout.strip()
    return facts


def sentence(facts: dict[str, str]) -> str:
    """The facts in a line of text."""
    return ", ".join(value if name in ("date", "machine") else f"{name} {value}" for name, value in facts.items())


def _processor() -> str:
    """The processor's name, without trade marks and frequencies."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
