"""Take single files out of a wheel, a zip or a tar archive, also out of an archive inside an archive."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rowsft.errors import UserError


def extract(archive: Path, members: dict[str, str], folder: Path) -> None:
    """Write `members` (name under `folder` -> path inside `archive`) and nothing else.

    A path `a.tar.gz!b.txt` means b.txt inside the archive a.tar.gz inside `archive`. Raises UserError naming a member
    that is not there.
    """
    for name, path in members.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            archive.open("rb") as outer,
            _member(outer, archive.name, path.split("!")) as source,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(source, out, 1 << 20)


@contextmanager
def _member(archive: IO[bytes], name: str, path: list[str]) -> Iterator[IO[bytes]]:
    first, *rest = path
    with _open(archive, name, first) as source:
        if not rest:
            yield source
        else:
            with _member(io.BytesIO(source.read()), first, rest) as inner:
                yield inner


@contextmanager
def _open(archive: IO[bytes], name: str, member: str) -> Iterator[IO[bytes]]:
    try:
        if name.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as zipped, zipped.open(member) as source:
                yield source
        else:
            with tarfile.open(fileobj=archive) as tarred:
                # None for a folder, which is not what is pinned either.
                if (content := tarred.extractfile(member)) is None:
                    raise KeyError(member)
                with content:
                    yield content
    except KeyError as error:
        raise UserError(f"{name}: no member {member}; the pinned package is not the expected one") from error
