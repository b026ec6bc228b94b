"""YAML as YAML 1.2 reads it (``1e-5`` is a number, ``no`` is a string), with scalars kept as text.

PyYAML follows YAML 1.1 and guesses types. Here a flag's annotation decides what its text means, so the parser gives
back only structure; where there is no annotation, `plain_value` decides. Tags are never acted on.
"""

import re
import sys
from pathlib import PurePath
from typing import Any, TypeAlias

import yaml

Node: TypeAlias = str | list["Node"] | dict[str, "Node"]

NULLS = ("null", "Null", "NULL", "None", "~")  # None: YAML has it as a string, Python users mean null
BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOATS = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class Quoted(str):
    """A scalar that stood in quotes: text, whatever it looks like."""


class YamlError(ValueError):
    """The text is not YAML, or not the YAML we accept. ``line`` counts from one; None where it is not known."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


def parse(text: str) -> Node | None:
    """Lists and mappings of text; None for an empty document.

    Raises:
        YamlError: broken syntax, or a key given twice in one mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlError(str(error.problem), line) from error
    except yaml.YAMLError as error:  # a control character, which has no line
        raise YamlError(" ".join(str(error).split())) from error
    return None if root is None else _convert(root)


def _convert(node: yaml.Node) -> Node:
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node)
    assert isinstance(node, yaml.ScalarNode)
    text = str(node.value)
    return Quoted(text) if node.style else text or "null"


def _convert_mapping(node: yaml.MappingNode) -> dict[str, Node]:
    mapping: dict[str, Node] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError("a key must be a plain word", line)
        if key_node.value in mapping:
            raise YamlError(f"the key {key_node.value!r} is given twice", line)
        mapping[str(key_node.value)] = _convert(value_node)
    return mapping


def plain_value(node: Node) -> Any:
    """The Python value of a node that no annotation describes, by the core schema of YAML 1.2."""
    if isinstance(node, list):
        return [plain_value(item) for item in node]
    if isinstance(node, dict):
        return {key: plain_value(value) for key, value in node.items()}
    if isinstance(node, Quoted):
        return str(node)
    if node in NULLS:
        return None
    if node in BOOLS:
        return BOOLS[node]
    if _INT.fullmatch(node):
        return int(node)
    if _FLOAT.fullmatch(node) or _SPECIAL_FLOATS.fullmatch(node):
        return to_float(node)
    return node


def to_float(text: str) -> float:
    """``float`` that also reads YAML's ``.inf`` and ``.nan``."""
    return float(text.replace(".", "") if _SPECIAL_FLOATS.fullmatch(text) else text)


def looks_structured(text: str) -> bool:
    """Whether a text reads as several values: it has a comma or stands in brackets."""
    return "," in text or (text[:1], text[-1:]) in (("[", "]"), ("(", ")"), ("{", "}"))


class _Dumper(yaml.SafeDumper):
    """Quotes every string that `parse` and an annotation could take for something else."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    misread = looks_structured(text) or plain_value(text) is not text or not text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if misread else None)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(PurePath, lambda dumper, path: _represent_text(dumper, str(path)))


def dump(values: Any) -> str:
    """YAML that `parse` reads back; tuples as lists, paths as strings, keys in their order.

    Raises:
        yaml.representer.RepresenterError: a value is an object of another kind.
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)
