"""A predicted step as a trace that Perfetto and chrome://tracing open.

Trace Event Format (Google, 2016): a process for each pipeline rank, in it a thread for what it computes and one for
what it sends; complete events ("X") for passes and transfers, flows ("s" to "f") from a pass over its transfer to the
pass that needs it, and a counter ("C") of the micro-batches whose activations are alive. Times are in microseconds from
the start of the step, to the nanosecond.
"""

import json
from collections.abc import Iterator, Mapping

import numpy as np

from planner.arrays import IntArray
from planner.evaluation.evaluate import Evaluation
from planner.layout import Layout, Stage
from planner.plans.layout_words import gpus_in_words
from planner.schedules.orders import OperationOrder

Event = dict[str, object]

COMPUTE, SEND = 1, 2
THREADS = {COMPUTE: "passes", SEND: "sends"}
"""Threads of a rank."""

ENCODE = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Writes a part of a trace; there are hundreds of thousands in one."""

DIGITS = 3
MICROSECONDS = 1e6


def trace_document(evaluation: Evaluation, layout: Layout, *, title: str) -> dict[str, object]:
    """Return the trace of one step as JSON.

    Args:
        evaluation: The layout, priced.
        layout: The layout.
        title: What the trace shows.
    """
    events = [
        *names_of(layout, THREADS),
        *_passes(evaluation, layout),
        *_transfers(evaluation),
        *_tail(evaluation, layout),
        *_in_flight(evaluation),
    ]
    return {"displayTimeUnit": "ms", "otherData": {"title": title, "predicted": True}, "traceEvents": events}


def trace_text(document: dict[str, object]) -> str:
    """Return a trace as a file: an event a line, so that two of them can be compared."""
    events = document["traceEvents"]
    assert isinstance(events, list), "a trace is made of events"
    head = ENCODE({**document, "traceEvents": []}).removesuffix("]}")
    return head + "\n" + ",\n".join(map(ENCODE, events)) + "\n]}\n"


def microseconds(seconds: float) -> float:
    """Return a time as a trace has it."""
    return round(seconds * MICROSECONDS, DIGITS)


def slice_event(  # noqa: PLR0913 - the fields of an event
    name: str, category: str, *, rank: int, thread: int, start: float, seconds: float, **arguments: object
) -> Event:
    """Return a complete event that lasts from `start` for so many seconds."""
    begin = microseconds(start)
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": begin,
        "dur": round(microseconds(start + seconds) - begin, DIGITS),
        "pid": rank,
        "tid": thread,
        "args": arguments,
    }


def names_of(layout: Layout, threads: Mapping[int, str]) -> Iterator[Event]:
    """Yield what ranks and threads are called, and their order."""
    for rank in range(layout.pp):
        ranks = gpus_in_words(layout, rank)
        yield {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"pipeline rank {rank}: {ranks}"}}
        yield {"name": "process_sort_index", "ph": "M", "pid": rank, "args": {"sort_index": rank}}
        for thread, name in threads.items():
            yield {"name": "thread_name", "ph": "M", "pid": rank, "tid": thread, "args": {"name": name}}


def _passes(evaluation: Evaluation, layout: Layout) -> Iterator[Event]:
    """Yield every forward and backward pass, and what keeps a rank busy behind its last ones."""
    timeline = evaluation.timeline
    order, extras_V = timeline.order, timeline.times.last_backward_extra_seconds_V
    stage_RK = order.stage_RK
    for rank in range(order.pp):
        for position in range(stage_RK.shape[1]):
            stage = int(stage_RK[rank, position])
            microbatch = int(order.microbatch_RK[rank, position])
            backward = bool(order.is_backward_RK[rank, position])
            start, end = (
                float(timeline.start_seconds_RK[rank, position]),
                float(timeline.end_seconds_RK[rank, position]),
            )
            yield slice_event(
                f"{'B' if backward else 'F'}{microbatch}",
                "backward" if backward else "forward",
                rank=rank,
                thread=COMPUTE,
                start=start,
                seconds=end - start,
                micro_batch=microbatch,
                stage=stage,
                layers=layers_text(layout.stages[stage]),
            )
            if backward and microbatch == order.num_microbatches - 1 and extras_V and extras_V[stage]:
                yield slice_event(
                    "gradient reduction",
                    "data-parallel",
                    rank=rank,
                    thread=COMPUTE,
                    start=end,
                    seconds=extras_V[stage],
                    stage=stage,
                )


def layers_text(stage: Stage) -> str:
    """Return what a stage has of the model."""
    parts = [f"{stage.first_layer} to {stage.first_layer + stage.num_layers - 1}"] if stage.num_layers else []
    parts += ["embedding"] * stage.has_embedding + ["head"] * stage.has_head
    return ", ".join(parts)


def _transfers(evaluation: Evaluation) -> Iterator[Event]:
    """Yield what ranks send one another, with the flow from the pass that made it to the pass that needs it."""
    timeline = evaluation.timeline
    order, seconds_E = timeline.order, timeline.times.transfer_seconds_E
    if not seconds_E:
        return
    place = _places(order)
    flow = 0
    for backward, stage, microbatch in sorted(place):
        target = stage - 1 if backward else stage + 1
        needed = place.get((backward, target, microbatch))
        if needed is None:
            continue
        rank, position = place[backward, stage, microbatch]
        start = float(timeline.end_seconds_RK[rank, position])
        seconds = seconds_E[min(stage, target)]
        name = f"{'gradients' if backward else 'activations'} of {microbatch} to rank {needed[0]}"
        yield slice_event(
            name, "transfer", rank=rank, thread=SEND, start=start, seconds=seconds, micro_batch=microbatch
        )
        flow += 1
        arrives = float(timeline.start_seconds_RK[needed])
        common = {"name": "transfer", "cat": "transfer", "id": flow}
        yield {**common, "ph": "s", "ts": microseconds(start), "pid": rank, "tid": SEND}
        yield {**common, "ph": "f", "bp": "e", "ts": microseconds(arrives), "pid": needed[0], "tid": COMPUTE}


def _places(order: OperationOrder) -> dict[tuple[bool, int, int], tuple[int, int]]:
    """Return the rank and position of every pass by (backward, stage, micro-batch)."""
    return {
        (bool(backward), int(stage), int(microbatch)): (int(rank), int(position))
        for (rank, position), backward, stage, microbatch in zip(
            np.ndindex(order.stage_RK.shape),
            order.is_backward_RK.ravel(),
            order.stage_RK.ravel(),
            order.microbatch_RK.ravel(),
            strict=True,
        )
    }


def _tail(evaluation: Evaluation, layout: Layout) -> Iterator[Event]:
    """Yield what all ranks do behind the last of them."""
    start = float(evaluation.timeline.rank_end_seconds_R.max())
    for rank in range(layout.pp):
        begin = start
        for name, seconds in (
            ("gradient norm and tied embedding", evaluation.tail_communication_seconds),
            ("optimizer step", evaluation.tail_optimizer_seconds),
        ):
            if seconds:
                yield slice_event(name, "step", rank=rank, thread=COMPUTE, start=begin, seconds=seconds)
            begin += seconds


def _in_flight(evaluation: Evaluation) -> Iterator[Event]:
    """Yield how many micro-batches, each through one of its stages, a rank keeps activations of."""
    timeline = evaluation.timeline
    order = timeline.order
    alive_RK: IntArray = np.cumsum(np.where(order.is_backward_RK, -1, 1), axis=1)
    for rank in range(order.pp):
        for position in range(alive_RK.shape[1]):
            backward = bool(order.is_backward_RK[rank, position])
            moment = (timeline.end_seconds_RK if backward else timeline.start_seconds_RK)[rank, position]
            yield {
                "name": "activations in flight",
                "ph": "C",
                "ts": microseconds(float(moment)),
                "pid": rank,
                "args": {"stages of micro-batches": int(alive_RK[rank, position])},
            }
