"""Where a number comes from: machine, versions, date, commit, pictures, weights."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from deepinv_dmilo.priors.prior import Prior

RATIOS = (0.1, 1.0, 10.0)  # of the noise levels that tell schedulers apart


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


def digest(*contents: bytes | Tensor) -> str:
    """What changes where bytes or tensors do: the first 16 hexadecimal digits of their SHA-256."""
    total = hashlib.sha256()
    for content in contents:
        total.update(content if isinstance(content, bytes) else _bytes(content))
    return total.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def prior_digest(prior: Prior) -> str:
    """What changes where the weights of a prior do, its settings, its noise levels, or how its networks are built."""
    import torch

    weights, levels = prior.state_dict(), [prior.level(ratio) for ratio in RATIOS]
    facts = repr((prior, levels, list(weights))) + json.dumps(_configurations(prior), default=str, sort_keys=True)
    return digest(facts.encode(), *filter(torch.is_tensor, weights.values()))


def _configurations(prior: Prior) -> list[tuple[str, dict[str, Any]]]:
    """Those of its networks, autoencoders too, but for where they were saved, and by which version."""
    told = []
    for part in prior.modules():
        config = getattr(part, "config", None)
        values = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
        told.append((type(part).__name__, {str(k): v for k, v in values.items() if not str(k).startswith("_")}))
    return [(kind, values) for kind, values in told if values]


def _processor() -> str:
    """The processor's name, without trade marks and frequencies."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
