"""An audit as lines of text: coloured on a terminal; in a log and a file, brackets around what is trained."""

from collections.abc import Iterator
from io import StringIO

from rich.console import Console
from rich.text import Text

from relax.data.audit.advice import warnings_of
from relax.data.audit.figures import Audit, Lengths, Part
from relax.data.audit.fill import Fill
from relax.data.audit.marked_row import Kind, MarkedRow, Stretch
from relax.data.audit.shares import counted, rows_of, share_of

LOG_WIDTH = 120
_STYLES: dict[Kind, str] = {"read": "", "trained": "bold green", "left out": "dim italic"}
_LABEL_WIDTH = 13
_MARGIN = "  │ "


def audit_lines(audit: Audit, *, color: bool = False, width: int = LOG_WIDTH) -> list[str]:
    """The audit to print, with ANSI codes if ``color``; the row that it shows is wrapped to ``width`` columns."""
    out = StringIO()
    console = Console(
        file=out,
        width=width,
        color_system="standard" if color else None,
        force_terminal=color,
        force_jupyter=False,
        no_color=not color,
        highlight=False,
    )
    texts = [
        Text(_heading(audit), "bold"),
        *(_labelled(label, text) for label, text in _figures(audit)),
        *_example(audit.example, console, color),
        *(Text(f"  warning: {line}", "yellow") for line in warnings_of(audit)),
    ]
    for text in texts:
        console.print(text, soft_wrap=True)
    return out.getvalue().removesuffix("\n").split("\n")


def _heading(audit: Audit) -> str:
    name = "Training data, the first rows of the stream" if audit.streamed else "Training data"
    trained = f"{share_of(audit.trained_tokens, audit.tokens)} of them trained"
    return f"{name}: {counted(audit.rows_kept, 'row')}, {counted(audit.tokens, 'token')}, {trained}"


def _labelled(label: str, text: str) -> Text:
    return Text.assemble("  ", (f"{label:<{_LABEL_WIDTH}}", "cyan"), text)


def _figures(audit: Audit) -> Iterator[tuple[str, str]]:
    """Label and text of each line; what there is none of is not mentioned."""
    yield "row lengths", _percentiles(audit.lengths)
    yield from (("", line) for line in audit.lengths.histogram.lines())
    if audit.unread_columns:
        yield "not read", f"the columns {', '.join(audit.unread_columns)}"
    for reason, count in audit.dropped.items():
        yield "dropped", f"{rows_of(count, audit.rows)}: {reason}"
    if audit.truncated:
        lost = f"{counted(audit.truncated_tokens, 'token')} lost"
        yield "cut", f"{rows_of(audit.truncated, audit.rows_kept)} to --max_length, {lost}"
    if audit.duplicates:
        yield "duplicates", f"{rows_of(audit.duplicates, audit.rows_kept)} equal to an earlier one"
    if audit.weights is not None:
        weights = audit.weights
        yield "row weights", f"{weights.lowest:.3g} to {weights.highest:.3g}, mean {weights.mean:.3g}"
    longest = max((len(part.name) for part in audit.parts), default=0)
    for at, part in enumerate(audit.parts):
        yield "mixture" if at == 0 else "", _part(part, longest)
    if audit.fill is not None:
        yield "batches", _batches(audit.fill)


def _percentiles(lengths: Lengths) -> str:
    named = {"p5": lengths.p5, "median": lengths.p50, "p95": lengths.p95, "p99": lengths.p99}
    return "   ".join(f"{name} {value:,}" for name, value in named.items()) + f"   longest {lengths.longest:,} tokens"


def _part(part: Part, width: int) -> str:
    shares = f"{part.share_of_rows:6.1%} of the rows, {part.share_of_tokens:6.1%} of the tokens"
    return f"{part.name:<{width}} {shares}: {counted(part.rows, 'row')}, read {part.passes:.2f}x an epoch"


def _batches(fill: Fill) -> str:
    if not fill.packed:
        kind = f"padded, {share_of(fill.slots - fill.tokens, fill.slots)} of the tokens are padding"
    elif fill.capacity is None:
        kind = "packed, no padding"
    else:
        kind = f"packed, {share_of(fill.tokens, fill.slots)} of {fill.capacity:,} tokens filled"
    number = counted(fill.micro_batches, *(("packed sequence", "s") if fill.sequences else ("micro-batch", "es")))
    return f"{kind} in {number}, the largest {fill.largest:,} tokens"


def _example(row: MarkedRow, console: Console, color: bool) -> Iterator[Text]:
    """The row behind a margin, wrapped at the console's width."""
    trained = f"{row.trained_tokens:,} of them trained ({'in green' if color else 'in ⟦ ⟧'})"
    yield _labelled(f"row {row.number:,}", f"{counted(row.tokens, 'token')}, {trained}")
    body = Text.assemble(*((_marked(stretch, color), _STYLES[stretch.kind]) for stretch in row.stretches))
    for line in body.wrap(console, max(20, console.width - len(_MARGIN))):
        yield Text.assemble((_MARGIN, "dim"), line)


def _marked(stretch: Stretch, color: bool) -> str:
    if stretch.kind != "trained":
        return stretch.text
    # A line break has no colour to see.
    return stretch.text.replace("\n", "↵\n") if color else f"⟦{stretch.text}⟧"
