"""What the file system's errors are said of: one file, or the place it lies in."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OF_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA)
"""It is gone, or spoilt by the word of the file system or the drive: another start finds it the same."""
OF_PLACE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.ESHUTDOWN,
)
"""Full, or gone: nobody's mistake in recipe or data, and another start may find it as it should be."""

OF_REFUSAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM)
"""No new file is taken, by a place that is there. (Not EROFS: some file systems turn so after faults of their own.)"""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the file system tell of what it is, where it does not: of a write Python tells no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def is_of_place(error: Exception) -> bool:
    """Whether an error says nothing of a file, so that nobody is to mend or delete it for that."""
    return isinstance(error, OSError) and error.errno in OF_PLACE


def is_damage(error: OSError, folder: Path) -> bool:
    """Whether an error means that a file is lost, whoever reads it and whenever.

    EIO is said of a bad place of a drive; a soft NFS mount without its server and a Lustre client that was evicted say
    it of every file. So it counts only where the place takes a new file meanwhile, or says why it takes none.

    Args:
        error: Of reading the file.
        folder: On the same file system; something is written there, without a name.
    """
    return error.errno in OF_FILE or (error.errno == errno.EIO and _answers(folder))


def _answers(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"x")
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in OF_REFUSAL
    return True
