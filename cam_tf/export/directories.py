"""Directories are written whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def directory_written_whole(
    path: str | os.PathLike, *, overwrite: bool = False, marker: str
) -> Iterator[Path]:
    """Gives a directory to write into, which takes its name only when the block ends without error.

    It is written next to its place and renamed. With ``overwrite`` the old directory is moved away
    first and deleted afterwards: for an instant there is none, and never half of one.

    Args:
        path: the directory's name. Missing parents are made.
        overwrite: replace an existing directory.
        marker: a file that a directory must hold to be replaced, so that a mistaken path does not
            cost other data.

    Yields:
        A path that does not exist yet: to make it is left to the block.

    Raises:
        FileExistsError: the path exists, and ``overwrite`` is False or does not apply to it.
        OSError: the place cannot be written to, or the disk is full; nothing is left behind.
    """
    path = Path(path).resolve()
    _check_place(path, overwrite, marker)
    try:
        ground = next(one for one in path.parents if one.exists())
        stage = Path(tempfile.mkdtemp(dir=ground, prefix=f".{path.name}."))
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): name another directory.") from error
    try:
        yield stage / "new"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_place(path, overwrite, marker)  # it may have come in the meantime
            path.rename(stage / "old")
        try:
            (stage / "new").rename(path)
        except BaseException:
            with suppress(FileNotFoundError):
                (stage / "old").rename(path)
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _check_place(path: Path, overwrite: bool, marker: str) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} is a file, not a directory: name another path.")
    if not overwrite:
        raise FileExistsError(
            f"{path} exists: name another directory, or replace it with overwrite=True."
        )
    if any(path.iterdir()) and not (path / marker).is_file():
        raise FileExistsError(
            f"{path} holds something else (there is no {marker} in it) and is not overwritten: "
            "name another directory."
        )
