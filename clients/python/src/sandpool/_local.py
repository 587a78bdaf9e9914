"""Files of this machine: read for uploads, and written by downloads, whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import BinaryIO

# Bytes that are read or written at a time.
PIECE = 1 << 20


class Landing:
    """Where a download arrives. It appears under its name when it is whole."""

    def __init__(self, local: str | os.PathLike[str], name: str) -> None:
        target = Path(local)
        # The name is the last component of what the caller asked for, not something that a session says.
        self.target = target / name if target.is_dir() else target
        self._part = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:8]}.part")
        self._file: BinaryIO = open(self._part, "xb")  # noqa: SIM115 - settle or abandon closes it

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def settle(self) -> Path:
        """All has come."""
        self._file.close()
        os.replace(self._part, self.target)
        return self.target

    def abandon(self) -> None:
        """Removes what has come so far."""
        self._file.close()
        self._part.unlink(missing_ok=True)
