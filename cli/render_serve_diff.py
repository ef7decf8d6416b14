"""What changed between two serving plans, as it is shown, and as JSON."""

from collections.abc import Iterator

from cli.render import milliseconds, signed_milliseconds, signed_percent
from cli.render_diff import Rows, Shown, pair_rows, remarks_document, term_rows
from planner.locks.serve_lock import ServeLock
from planner.locks.serve_lock_changes import ServeLockChanges


def serve_shown(found: ServeLockChanges) -> Shown:
    """Return a difference of serving plans as it is shown."""
    return Shown(
        title="Serving plan",
        remarks=found.remarks,
        tables=tuple(_tables(found)),
        files=found.files,
        unchanged=not (found.remarks or found.settings or found.inputs or found.times or found.terms),
    )


def _tables(found: ServeLockChanges) -> Iterator[Rows]:
    yield Rows(title="Prediction", rows=tuple(_figures(found.old, found.new)))
    if found.times:
        rows = tuple(
            (name, milliseconds(old), milliseconds(new), signed_milliseconds(new - old))
            for name, (old, new) in found.times.items()
        )
        yield Rows(title="Times that the targets speak of", rows=rows)
    for title, pairs in (("Inputs that changed", found.inputs), ("Engines", found.settings)):
        if pairs:
            yield pair_rows(title, pairs)
    if found.terms:
        yield term_rows(found.terms)


def _figures(old: ServeLock, new: ServeLock) -> Iterator[tuple[str, str, str, str]]:
    rates = old.requests_per_second, new.requests_per_second
    yield "requests/s", f"{rates[0]:,.2f}", f"{rates[1]:,.2f}", signed_percent(rates[1] / rates[0] - 1)
    speeds = old.tokens_per_second_per_gpu, new.tokens_per_second_per_gpu
    yield "tokens/s/GPU", f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", signed_percent(speeds[1] / speeds[0] - 1)
    yield "GPUs", str(old.num_gpus), str(new.num_gpus), f"{new.num_gpus - old.num_gpus:+}"
    if old.price_per_hour and new.price_per_hour is not None:
        prices = old.price_per_hour, new.price_per_hour
        yield "an hour", f"{prices[0]:,.2f}", f"{prices[1]:,.2f}", signed_percent(prices[1] / prices[0] - 1)


def serve_diff_document(found: ServeLockChanges) -> dict[str, object]:
    """Return a difference of serving plans as JSON; seconds and requests, never rounded."""
    old, new = found.old, found.new
    return {
        "schema": 1,
        "kind": "serve",
        "remarks": remarks_document(found.remarks),
        "requests_per_second": [old.requests_per_second, new.requests_per_second],
        "tokens_per_second_per_gpu": [old.tokens_per_second_per_gpu, new.tokens_per_second_per_gpu],
        "num_gpus": [old.num_gpus, new.num_gpus],
        "price_per_hour": [old.price_per_hour, new.price_per_hour],
        "times": {name: list(pair) for name, pair in found.times.items()},
        "inputs": {part: list(pair) for part, pair in found.inputs.items()},
        "settings": {name: list(pair) for name, pair in found.settings.items()},
        "seconds_by_term": {term: list(pair) for term, pair in found.terms.items()},
        "files": list(found.files),
    }
