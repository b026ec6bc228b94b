"""A .json file as rows: one list, whole in memory (JSON has no places to begin reading at; JSONL is read lazily)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relax.data.examples import Row
from relax.data.sources.compressed import opened
from relax.data.sources.fingerprints import content_digest
from relax.data.sources.json_text import check_object, decode, parse_json
from relax.errors import UserError


@dataclass(frozen=True)
class JsonFile:
    """The rows of a file that is a list of objects, or ``{"data": [...]}``."""

    name: str
    rows: Sequence[Row]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Row:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def place(self, index: int) -> str:
        """``rows.json:row 17``."""
        return f"{self.name}:row {index + 1}"


def read_json_file(path: Path) -> JsonFile:
    """Read the whole file (.json or .json.gz).

    Raises:
        UserError: unreadable, not UTF-8, not JSON, another shape, or a row that is not an object.
    """
    with opened(path) as file:
        fingerprint = content_digest(file, ".json")
        file.seek(0)
        raw = file.read()
    try:
        rows = _rows(decode(raw).removeprefix("\ufeff"))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    for number, row in enumerate(rows, 1):
        try:
            check_object(row)
        except UserError as error:
            raise UserError(f"{path}:row {number}: {error}") from None
    return JsonFile(str(path), rows, fingerprint)


def _rows(text: str) -> list[Row]:
    if not text.strip():
        return []
    lines = text.split("\n", 2)
    if len(lines) > 1 and lines[0].rstrip().endswith("}") and lines[1].lstrip().startswith("{"):
        raise UserError("not valid JSON, it holds one object a line: rename it to .jsonl")
    data = parse_json(text)
    if isinstance(data, dict):
        data = data.get("data")
    if not isinstance(data, list):
        raise UserError('a .json file must be a list of objects, or {"data": [...]}, got another shape')
    return data
