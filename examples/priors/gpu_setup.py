"""What the parts of gpu_check.py share: the settings of a run, the record of a part, networks, pictures, seconds."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from real_size import CELEBAHQ, TINY  # docs/scripts, which gpu_check.py puts on the path
from torch import Tensor

from deepinv_dmilo import DMILO, LBFGS, DiffusionPrior, Levels
from deepinv_dmilo.priors.pretrained import held_out_images
from deepinv_dmilo.tools.images import open_images, picture_files
from deepinv_dmilo.tools.pictures import read_picture
from deepinv_dmilo.tools.scoring import Meter
from deepinv_dmilo.utils.memory import is_out_of_memory

NEEDS_CUDA = "needs CUDA"
LARGE = "large"  # the network of random weights
PICTURES = 4


@dataclass(frozen=True)
class Setup:
    """The settings of a run."""

    device: torch.device
    quick: bool
    folder: Path  # of records and of the prior that is trained
    prior: str
    images: Path | None = None  # pictures to reconstruct
    photos: Path | None = None  # pictures to train on
    train_minutes: float = 0.0

    @property
    def size(self) -> int:
        """Height and width of the images."""
        return 32 if self.quick else 256

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    def network(self, name: str, **settings: Any) -> DiffusionPrior:
        """A prior by its name; ``LARGE``: random weights, in the configuration of google/ddpm-celebahq-256."""
        if name != LARGE:
            return DiffusionPrior.from_pretrained(name, device=self.device, **settings)
        torch.manual_seed(0)
        unet: Any = UNet2DModel(in_channels=3, out_channels=3, **(TINY if self.quick else CELEBAHQ))
        prior = DiffusionPrior(unet, DDPMScheduler(), **settings).eval().to(self.device)
        return prior.to(memory_format=torch.channels_last)


class Record:
    """What a part found, in a file that is written again after each row."""

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, time.monotonic()
        self.found: dict[str, Any] = {"blocks": [], "seconds": 0.0, "ended": ""}
        self.write()

    def write(self) -> None:
        """Write the file, whole at any time."""
        self.found["seconds"] = time.monotonic() - self.started
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1))
        partial.replace(self.file)

    def note(self, text: str) -> None:
        """Add a paragraph."""
        self.found["blocks"].append({"text": text})
        self.write()

    def table(self, *columns: str) -> None:
        """Begin a table."""
        self.found["blocks"].append({"columns": columns, "rows": []})

    def row(self, *head: object, cells: Callable[[], tuple[object, ...]] = tuple) -> None:
        """Add a row: its head, and cells, or what went wrong as one of them."""
        made = attempt(cells)
        row = [*map(str, head), *map(str, made if isinstance(made, tuple) else [made])]
        self.found["blocks"][-1]["rows"].append(row)
        print(" | ".join(row), flush=True)
        self.write()

    def end(self, how: str) -> None:
        """The part ended: "done", or why it did not come to its end."""
        self.found["ended"] = how
        self.write()


def attempt(make: Callable[[], Any]) -> Any:
    """What ``make`` gives, or in one line why it did not; the memory of what failed is given back."""
    try:
        return make()
    except Exception as error:
        return "out of memory" if is_out_of_memory(error) else told(error)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def told(error: BaseException) -> str:
    """An error in one line, fit for a table."""
    first = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
    return f"{type(error).__name__}: {first[:150]}"


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Whether float32 may be rounded to TF32 in products; afterwards as before."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def few_passes(prior: DiffusionPrior, passes: int) -> DMILO:
    """DMILO with so many passes, whatever the network: weights that are random end no sooner."""
    return DMILO(prior, schedule=Levels((1.0,)), solver=LBFGS(passes, tolerance=0.0))


def measured(model: Any, y: Tensor, physics: Any) -> tuple[Tensor, Meter]:
    """The images of a reconstructor, and their seconds and memory; hooks that count passes would hinder compiling."""
    with Meter(None, y.device) as meter:
        x_hat = model(y, physics)
    return x_hat, meter


def pictures(setup: Setup, record: Record, count: int = PICTURES) -> Tensor:
    """Pictures (count, 3, size, size) to reconstruct, on the device; a note tells what they are."""
    size, count = setup.size, 1 if setup.quick else count
    if setup.images is not None:
        found, names = open_images(str(setup.images), (3, size, size))
        chosen = range(min(count, len(names)))
        small = sum(
            min(read_picture(f).shape[-2:]) < size for f in picture_files(setup.images, quiet=True)[: len(chosen)]
        )
        enlarged = f"{small} of them enlarged" if small else "none enlarged"
        record.note(f"Pictures: {len(chosen)} of {setup.images.name!r}, their middle at {size} x {size}, {enlarged}.")
        return torch.stack([found[i] for i in chosen]).to(setup.device)
    held_out = held_out_images("photos")[:count]  # the first seven are of 256 x 256 from the start
    start = (held_out.shape[-1] - size) // 2
    record.note(f"Pictures: {len(held_out)} held out of `photos`, their middle {size} x {size}, none enlarged.")
    return held_out[..., start : start + size, start : start + size].to(setup.device)
