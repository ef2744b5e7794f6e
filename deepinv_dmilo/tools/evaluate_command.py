"""The command ``deepinv-dmilo evaluate``: a data set, image by image on record."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from deepinv_dmilo.tools.errors import door
from deepinv_dmilo.tools.options import (
    NOISE_HELP,
    PRIOR_HELP,
    SAMPLER,
    SIMULATED_NOISE,
    add_method,
    choose_method,
    open_device,
    open_method,
    open_prior,
    task_options,
)


def add_evaluate(commands: Any) -> None:
    """Add the command to those of the command line."""
    command = commands.add_parser(
        "evaluate", help="degrade and reconstruct a data set; may be cut off; splits under accelerate launch"
    )
    command.add_argument("dataset", metavar="DATASET", help="folder of pictures, deepinv data set, or 'digits'")
    command.add_argument("--out", type=Path, required=True, help="folder of pictures, records and summary")
    command.add_argument("--data-root", type=Path, help="where deepinv keeps its data sets")
    command.add_argument("--size", type=int, help="pictures are resized and cropped to it (default: as trained)")
    command.add_argument("--limit", type=int, help="only so many images, the first")
    command.add_argument("--batch-size", type=int, default=8, help="images reconstructed together (default: 8)")
    command.add_argument("--micro-batch", help="how many of them go through the network at once; auto: as many as fit")
    command.add_argument(
        "--metrics", nargs="+", default=[], metavar="METRIC", help="beside PSNR and SSIM: lpips, stlpips"
    )
    command.add_argument(
        "--uncertainty",
        action="store_true",
        help=f"also write std/NAME.png, the standard deviation over samples of the posterior (--method {SAMPLER}); "
        "white is std_max of the record",
    )
    command.add_argument(
        "--save-samples",
        action="store_true",
        help=f"also write the samples (--method {SAMPLER}): sample-1/NAME.png, sample-2/NAME.png, ...",
    )
    command.add_argument("--prior", help=f"{PRIOR_HELP} (default: the data set's own, else photos)")
    command.add_argument(
        "--noise", type=float, default=SIMULATED_NOISE, help=f"{NOISE_HELP}(default: {SIMULATED_NOISE})"
    )
    add_method(command)
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    from deepinv_dmilo import __version__
    from deepinv_dmilo.likelihood.measurements import measure
    from deepinv_dmilo.priors.pretrained import bundled_priors
    from deepinv_dmilo.tools.evaluate import evaluate
    from deepinv_dmilo.tools.images import open_images
    from deepinv_dmilo.tools.metrics import open_metric
    from deepinv_dmilo.tools.provenance import prior_digest
    from deepinv_dmilo.tools.tasks import make_physics

    auto = args.micro_batch == "auto"
    if Path(args.dataset).is_dir():
        args.dataset = str(Path(args.dataset))  # without a slash at its end, say
    if args.prior is None:
        is_bundled = args.dataset in bundled_priors() and not Path(args.dataset).is_dir()  # a folder goes before
        args.prior = args.dataset if is_bundled else "photos"
    with door():
        choose_method(args)
        _check_evaluate(args)
        # One process may wait long for another's last batch.
        state = PartialState(cpu=args.device == "cpu" or not torch.cuda.is_available(), timeout=timedelta(days=30))
        device = (
            str(state.device)
            if args.device in (None, "cuda") and state.device.type == "cuda"
            else open_device(args.device)
        )
        prior = open_prior(args.prior, device, bfloat16=args.bfloat16)
        if prior.image_shape is None:
            raise ValueError(f"--prior {args.prior}: its network does not tell its image size; give a UNet2DModel")
        shape = prior.image_shape if args.size is None else (prior.image_shape[0], args.size, args.size)
        model = open_method(
            args, prior, micro_batch=None if auto or args.micro_batch is None else int(args.micro_batch)
        )
        if args.micro_batch is not None and not hasattr(model, "micro_batch"):
            raise ValueError(f"{args.method} cannot split a batch; leave --micro-batch out and lower --batch-size")
        with state.local_main_process_first():  # it may download
            images, names = open_images(args.dataset, shape, args.data_root, quiet=not state.is_main_process)
        shape = tuple(images.shape[1:]) if torch.is_tensor(images) else shape  # type: ignore[assignment]
        metrics = {name: open_metric(name, shape, device) for name in args.metrics}
        physics = make_physics(args.task, shape, device=device, **task_options(args, args.noise))
        if hasattr(model, "check"):  # as ours have: an error after this is no fault of the input
            model.check(measure(torch.zeros(1, *shape, device=device), physics), physics)
    free = (
        "run",
        "out",
        "limit",
        "batch_size",
        "micro_batch",
        "data_root",
        "uncertainty",
        "save_samples",
    )  # results do not depend on them
    settings = {name: value for name, value in vars(args).items() if name not in free}
    if not args.metrics:
        del settings["metrics"]  # so that a folder begun before there were any goes on
    settings["device"] = torch.device(device).type  # which draws the operator
    settings |= {"size": list(shape[1:]), "weights": prior_digest(prior), "version": __version__}
    if args.size is None and state.is_main_process and not torch.is_tensor(images):
        note = f"pictures are resized and cropped to {shape[1]} x {shape[2]}, as the prior was trained; or type --size"
        print(note, file=sys.stderr)
    with torch.no_grad():
        evaluate(
            model,
            images,
            names[: args.limit],
            physics,
            args.out,
            settings=settings,
            seed=args.seed,
            batch_size=args.batch_size,
            device=device,
            halve_on_out_of_memory=auto,
            metrics=metrics,
            uncertainty=args.uncertainty,
            save_samples=args.save_samples,
        )
    if not state.is_main_process:
        return 0  # the exit code is the first process's, which may still be at work
    summary = (args.out / "summary.json").read_text()
    print(summary)
    print(f"wrote {args.out}")
    return 1 if json.loads(summary)["unreadable"] else 0


def _check_evaluate(args: argparse.Namespace) -> None:
    """Refuse numbers that are none, and results among the pictures."""
    from deepinv_dmilo.tools.images import walked

    for name, word in (("limit", ""), ("size", ""), ("batch_size", ""), ("micro_batch", ", or auto")):
        value = getattr(args, name)
        if value is None or (name == "micro_batch" and value == "auto"):
            continue
        if not (str(value).isdecimal() and int(value) > 0):
            raise ValueError(f"--{name.replace('_', '-')} {value}: type a whole number of at least 1{word}")
    folders = {Path(args.dataset).resolve(), *walked(Path(args.dataset))[0]}
    if folders & {args.out.resolve(), *args.out.resolve().parents}:
        raise ValueError(f"--out {args.out} is inside {args.dataset}, where its pictures would be taken for images")
