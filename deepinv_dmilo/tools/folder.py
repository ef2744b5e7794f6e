"""The folder of a run: one run at a time, whole files or none, names that stay inside."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from deepinv_dmilo.tools.errors import InputError

LOCK = ".lock"
ADVICE = "; what is done is kept, mend that and start the same again"
NAMED = 3  # of many files, in a line
LONGEST_NAME = 200  # bytes of a name: file systems take 255, of which ours add a dot and an ending


def shown(text: str) -> str:
    """Text from outside in a line: spaces for line breaks, and what a terminal would obey written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def few(names: Sequence[str]) -> str:
    """The first names in a line, and whether there are more."""
    return shown(", ".join(names[:NAMED])) + (", ..." if len(names) > NAMED else "")


def check_names(names: Sequence[str]) -> None:
    """
    Refuse names of images whose files would lie outside the folder, or in each other's way.

    :param names: relative paths without ending, with ``/`` between folders.
    :raises ValueError: says which name, and what to do.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for name in names:
        path = PurePosixPath(name)
        inside = name not in ("", ".") and not path.is_absolute() and ".." not in path.parts
        if not inside or any(c in name for c in "\0\\"):
            raise ValueError(f"an image is named {shown(name)!r}, which could lie outside the folder; rename it")
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise ValueError(f"the name {shown(name)[:40]!r}... is longer than {LONGEST_NAME} bytes; rename it")
        if name in files:
            raise ValueError(f"two images are named {shown(name)!r}; rename one")
        files |= {name: name, f"{name}.json": name, f"{name}.png": name, f"{name}.json.damaged": name}
        folders |= {str(parent): name for parent in path.parents}
    for folder in sorted(folders.keys() & files.keys()):
        if folder != files[folder]:
            raise ValueError(f"image {shown(files[folder])!r} and folder {shown(folder)!r} need one file; rename one")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """
    Keep other runs out of a folder; a run that was killed is no run.

    The system's lock on a file, which goes with the process however that ends.

    :raises InputError: another run is at work in the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / LOCK
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
        except BlockingIOError as error:
            os.close(handle)
            raise InputError(f"another run is at work in {out}; wait for its end, or give another --out") from error
        except (OSError, ImportError) as error:
            print(f"{out} cannot be locked ({error}): start no second run into it", file=sys.stderr)
        with suppress(FileNotFoundError):  # the run before may have removed what we have just locked
            if os.path.samestat(os.fstat(handle), file.stat()):
                break
        os.close(handle)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(str(error)) from error
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_unfinished(out: Path) -> None:
    """Remove what a run that was killed was writing."""
    for file in [*out.glob(".*.partial"), *out.glob("*/**/.*.partial")]:
        file.unlink()


def write_whole(file: Path, content: str | bytes, *, advice: str = ADVICE) -> None:
    """All of a file or nothing of it, even where the power fails; where it fails, with what to do about it."""
    unfinished = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, f"{file} cannot be written: {error.strerror}{advice}") from error
