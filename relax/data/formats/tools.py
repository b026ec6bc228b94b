"""Tools: the schemas shown to the model, and the calls it makes. Runs none of them.

Data sets keep both as objects or as JSON in a string (a Parquet column has one type); templates write them as JSON, so
both are handed on as objects.
"""

import json
from collections.abc import Mapping
from typing import Any

from relax.data.examples import Row, Tool
from relax.data.formats.cells import check_depth, kind, parsed, shown
from relax.errors import UserError


def read_tools(row: Row) -> list[Tool] | None:
    """The schemas in the row's ``tools`` column: a list of objects, the list or each of them possibly a JSON string.

    ``None`` if there is no such column, or nothing in it.

    Raises:
        UserError: it holds anything else.
    """
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = parsed(tools, "'tools'")
    if not tools and not isinstance(tools, bool | int | float):
        return None
    if not isinstance(tools, list):
        raise UserError(f"'tools' must be a list of JSON schemas, or such a list as a string, got {kind(tools)}")
    return [_schema(tool, f"tool {number} of 'tools'") for number, tool in enumerate(tools, 1)]


def read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """An assistant's ``tool_calls``, each as ``{"type": "function", "function": {"name", "arguments"}}``.

    A call may come without its wrapping (``{"name", "arguments"}``), and its arguments as a JSON string, as the OpenAI
    interface gives them: an object in a string is unpacked, because templates would quote the string a second time.

    Raises:
        UserError: no list of such calls; the message begins with ``where``.
    """
    if not isinstance(calls, list):
        raise UserError(f"{where} must be a list of calls, got {kind(calls)}")
    return [_call(call, f"call {number} of {where}") for number, call in enumerate(calls, 1)]


def read_written_calls(text: Any, where: str) -> list[dict[str, Any]]:
    """The calls of a ShareGPT ``function_call`` turn: one JSON object in a string, or a list of them.

    Raises:
        UserError: it holds anything else; the message begins with ``where``.
    """
    if not isinstance(text, str):
        raise UserError(f"{where} must be a JSON string with a call, got {kind(text)}")
    calls = parsed(text, where)
    return read_calls(calls if isinstance(calls, list) and calls else [calls], where)


def _schema(tool: Any, where: str) -> Tool:
    schema = parsed(tool, where) if isinstance(tool, str) else tool
    check_depth(schema, where)
    if not isinstance(schema, dict) or not schema:
        raise UserError(f"{where} must be a JSON schema (an object), got {kind(schema)}")
    return schema


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise UserError(f"{where} must be an object with 'name' and 'arguments', got {kind(call)}")
    wrapping = {"type": "function", **call} if "function" in call else {"type": "function", "function": call}
    function = wrapping["function"]
    if not isinstance(function, Mapping):
        raise UserError(f"{where} must hold a 'function' with 'name' and 'arguments', got {kind(function)}")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise UserError(f"{where} must have the 'name' of a function, got {shown(function.get('name'))}")
    return {**wrapping, "function": {**function, "arguments": _arguments(function.get("arguments"), where)}}


def _arguments(arguments: Any, where: str) -> dict[str, Any] | str:
    """The arguments as an object; a string that holds none is what the model wrote, and stays."""
    if arguments is None:
        return {}
    if isinstance(arguments, str):
        try:
            unpacked = parsed(arguments, where)
        except UserError:
            return arguments
        return unpacked if isinstance(unpacked, dict) else arguments
    if not isinstance(arguments, dict):
        raise UserError(f"{where} must have 'arguments' in an object or a JSON string, got {kind(arguments)}")
    try:
        json.dumps(arguments)
    except (TypeError, ValueError) as error:  # a date, for example: Parquet has more types than JSON
        raise UserError(f"{where} has 'arguments' that JSON cannot hold ({error})") from None
    return arguments
