"""The command line ``deepinv-dmilo``, above all rooms: demo, reconstruct, evaluate, benchmark, priors."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from deepinv_dmilo import __version__
from deepinv_dmilo.benchmarks.cli import add_benchmark
from deepinv_dmilo.tools.errors import InputError, door
from deepinv_dmilo.tools.evaluate_command import add_evaluate
from deepinv_dmilo.tools.folder import shown
from deepinv_dmilo.tools.options import add_device, open_device, png
from deepinv_dmilo.tools.reconstruct_command import add_reconstruct


class _Parser(argparse.ArgumentParser):
    """Errors as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run a command; an error of the input is one line on stderr and exit code 2."""
    args = _parser().parse_args(argv)
    try:
        with _warnings_in_a_line():
            return args.run(args) or 0
    except KeyboardInterrupt:
        print("deepinv-dmilo: interrupted", file=sys.stderr)
        return 130
    except (InputError, OSError, ImportError, FloatingPointError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError | MemoryError) and not _is_out_of_memory(error):
            raise  # a bug
        print(f"deepinv-dmilo: error: {shown(str(error)) or 'out of memory'}", file=sys.stderr)
        return 2


@contextmanager
def _warnings_in_a_line() -> Iterator[None]:
    """Print each warning once, without the line of code that it comes from."""
    told = set()

    def show(message: Warning | str, *_: object) -> None:
        if str(message) not in told:
            told.add(str(message))
            print(f"deepinv-dmilo: warning: {shown(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def _is_out_of_memory(error: Exception) -> bool:
    from deepinv_dmilo.utils.memory import is_out_of_memory

    return is_out_of_memory(error)


def _parser() -> _Parser:
    parser = _Parser(
        prog="deepinv-dmilo", description="Image reconstruction with a diffusion prior: DMILO, DMILO-PGD, DMPlug."
    )
    parser.add_argument("--version", action="version", version=f"deepinv-dmilo {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="four tasks on held-out photographs, beside deepinv's DiffPIR")
    demo.add_argument("--digits", type=int, nargs="?", const=2, metavar="N", help="N held-out digits instead (2)")
    demo.add_argument("--out", type=png, default=Path("demo.png"), help="comparison picture (default: demo.png)")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    add_device(demo)
    demo.set_defaults(run=_demo)

    for add in (add_reconstruct, add_evaluate, add_benchmark):
        add(commands)

    priors = commands.add_parser("priors", help="list the bundled priors")
    priors.set_defaults(run=_priors)
    return parser


def _demo(args: argparse.Namespace) -> None:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.pretrained import held_out_images
    from deepinv_dmilo.tools.demo import demo_digits, demo_photographs, format_table, run_demo, save_picture
    from deepinv_dmilo.tools.provenance import provenance, sentence

    with door():
        device, count = open_device(args.device), args.digits
        if count is not None and not 1 <= count <= len(held_out_images("digits")):
            raise ValueError(f"--digits {count}: type a number from 1 to {len(held_out_images('digits'))}")
        prior = DiffusionPrior.from_pretrained("photos" if count is None else "digits", device=device)
    if count is None:
        scenes, methods = demo_photographs(prior, verbose=not args.quiet)
    else:
        scenes, methods = demo_digits(prior, count=count, verbose=not args.quiet)
    rows, columns = run_demo(scenes, methods, verbose=not args.quiet)
    print(f"\n{format_table(rows)}\n")
    shown = "a held-out photograph for each task" if count is None else f"{count} held-out digits"
    print(f"{shown}, noise 0.005; {sentence(provenance(device))}")
    save_picture(columns, str(args.out))
    print(f"wrote {args.out}")


def _priors(args: argparse.Namespace) -> None:
    from deepinv_dmilo.priors.diffusers import DiffusionPrior
    from deepinv_dmilo.priors.pretrained import bundled_priors, prior_folder

    for name in bundled_priors():
        folder = prior_folder(name)
        prior = DiffusionPrior.from_pretrained(name)
        megabytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
        parameters = sum(p.numel() for p in prior.parameters())
        shape = " x ".join(map(str, prior.image_shape or ()))
        print(
            f"{name}: trained on images {shape}, takes any size, {parameters:,} parameters, "
            f"{megabytes:.1f} MB, card {folder / 'README.md'}"
        )


if __name__ == "__main__":
    sys.exit(main())
