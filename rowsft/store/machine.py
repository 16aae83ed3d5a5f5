"""Where a process is: on which kernel and on which mount. Within both, `flock` tells the truth."""

import errno
import functools
import hashlib
import os
import platform
import socket
import uuid
from contextlib import suppress
from pathlib import Path

#: What flock fails with on a file system that has none.
NO_FLOCK = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP})


def here(folder: str | os.PathLike) -> str:
    """Return eight hexadecimal digits for this kernel and the file system that `folder` is on.

    Two mounts of one network folder on one machine are two file systems to its kernel, and get two answers.
    """
    return hashlib.sha256(f"{_kernel()} {Path(folder).stat().st_dev}".encode()).hexdigest()[:8]


def name() -> str:
    """Return the machine's name in one printable word, for messages."""
    return "".join(c if c.isalnum() or c in ".-_" else "?" for c in platform.node()) or "unknown"


@functools.cache
def _kernel() -> str:
    """A text that the containers of one machine share and no two machines do; another one after every start."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {uuid.getnode()}"
