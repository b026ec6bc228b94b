"""A conversation in which the assistant calls a tool."""

from typing import Any

CALL: dict[str, Any] = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "clock", "arguments": {"zone": "UTC"}},
}
TOOL_LOOP: list[dict[str, Any]] = [
    {"role": "user", "content": "Time?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "12:00", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "Noon."},
]
