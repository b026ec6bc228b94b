"""What names the content of rows, a digest of their file or of their parts; and what tells that a file has changed."""

import hashlib
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from relax.data.rows import Identified, Located, Rows
from relax.errors import UserError


class SourceRows(Rows, Located, Identified, Protocol):
    """What each of our sources gives: rows with a place and a fingerprint. They are picklable, to travel to workers."""


def digest(*parts: str) -> str:
    """128 bits as hex, of texts and their order."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def content_digest(file: BufferedReader, reader: str) -> str:
    """128 bits as hex, of a file's bytes and what reads them: the same bytes are other rows as .txt than as .jsonl."""
    return digest(reader, hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest())


@dataclass(frozen=True)
class Stamped:
    """A file as it was when first looked at. ``name`` is what people call it: ``path`` may be an unpacked copy."""

    path: Path
    name: str
    size_bytes: int
    changed_ns: int

    @classmethod
    def now(cls, path: Path, name: str | None = None) -> "Stamped":
        """The file as it is."""
        found = path.stat()
        return cls(path, name or str(path), found.st_size, found.st_mtime_ns)

    @property
    def identity(self) -> str:
        """Of its own name and its size: what can be told without reading it."""
        return digest(self.path.name, str(self.size_bytes))

    def check(self) -> None:
        """Refuse a file that is not what it was.

        Raises:
            UserError: it is gone, or has another size or time: an index made before would cut it at the wrong places.
        """
        try:
            now = Stamped.now(self.path, self.name)
        except OSError as error:
            raise UserError(f"{self.name}: cannot be read any more ({error.strerror})") from None
        if now != self:
            raise UserError(f"{self.name}: the file has changed since this run began to read it; start the run again")
