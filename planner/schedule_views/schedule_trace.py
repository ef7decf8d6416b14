"""A layout under a schedule that the search does not choose from, as a trace (`planner.schedule_views.trace`).

A process for each pipeline rank, in it a thread for its passes and, where activations wait on the host, one for the
copies to it and one for those from it, with flows from the one to the other; counters of the activations on the rank
and on its host. Transfers between ranks and what comes behind the passes are not in it.
"""

from collections.abc import Iterator, Sequence

from planner.layout import Layout, Stage
from planner.schedule_views.other_schedules import Scheduled
from planner.schedule_views.trace import COMPUTE, Event, layers_text, microseconds, names_of, slice_event
from planner.schedules.offload import Copies, Copy, device_bytes, host_bytes
from planner.schedules.offload_choice import Sizes
from planner.schedules.passes import Pass, PassKind, PassOrder, PassTimeline

TO_HOST, FROM_HOST = 3, 4
COPY_THREADS = {TO_HOST: "copies to the host", FROM_HOST: "copies from the host"}

CATEGORIES = {
    PassKind.FORWARD: "forward",
    PassKind.BACKWARD: "backward",
    PassKind.INPUT_GRADIENT: "input gradient",
    PassKind.WEIGHT_GRADIENT: "weight gradient",
}


def schedule_trace_document(
    scheduled: Scheduled, layout: Layout, *, title: str, is_offloaded: bool
) -> dict[str, object]:
    """Return the trace of the passes of one step as JSON.

    Args:
        scheduled: The layout under the schedule.
        layout: The layout.
        title: What the trace shows.
        is_offloaded: With activations on the host.
    """
    timeline, copies_R = scheduled.timeline, (Copies(to_host=(), from_host=()),) * layout.pp
    threads = {COMPUTE: "passes"}
    if is_offloaded and scheduled.offloaded is not None:
        timeline, copies_R = scheduled.offloaded.timeline, scheduled.offloaded.copies_R
        threads |= COPY_THREADS
    stages = _stages(timeline.order, scheduled.cut.placed.layout.stages)
    sizes = scheduled.cut.sizes(timeline.order.chains)
    events = [*names_of(layout, threads)]
    for rank, copies in enumerate(copies_R):
        events += _passes(timeline, rank, stages)
        events += _copies(copies, rank)
        events += _held(timeline, rank, copies, sizes)
    return {"displayTimeUnit": "ms", "otherData": {"title": title, "predicted": True}, "traceEvents": events}


def _stages(order: PassOrder, stages: Sequence[Stage]) -> dict[int, Stage]:
    """Return what each stage of an order has of the model."""
    return {stage: stages[position] for chain in order.chains for position, stage in enumerate(chain)}


def _passes(timeline: PassTimeline, rank: int, stages: dict[int, Stage]) -> Iterator[Event]:
    """Yield every block of a rank; one of several passes is named after all of them."""
    blocks = zip(
        timeline.order.blocks_R[rank], timeline.start_seconds_R[rank], timeline.end_seconds_R[rank], strict=True
    )
    for block, start, end in blocks:
        yield slice_event(
            " + ".join(_name(entry) for entry in block),
            CATEGORIES[block[0].kind] if len(block) == 1 else "interwoven",
            rank=rank,
            thread=COMPUTE,
            start=start,
            seconds=end - start,
            micro_batch=block[0].microbatch,
            stage=block[0].stage,
            layers=layers_text(stages[block[0].stage]),
        )


def _name(entry: Pass) -> str:
    return f"{entry.kind}{entry.microbatch}"


def _copies(copies: Copies, rank: int) -> Iterator[Event]:
    """Yield the copies of a rank, with flows from those to the host to those from it."""
    for thread, name, made in ((TO_HOST, "to", copies.to_host), (FROM_HOST, "from", copies.from_host)):
        for copy in made:
            entry = copy.moved.saved
            yield slice_event(
                f"activations of {entry.microbatch} {name} the host",
                "copy",
                rank=rank,
                thread=thread,
                start=copy.start_seconds,
                seconds=copy.end_seconds - copy.start_seconds,
                micro_batch=entry.microbatch,
                stage=entry.stage,
                share=copy.moved.share,
            )
            yield _flow(copy, rank, thread)


def _flow(copy: Copy, rank: int, thread: int) -> Event:
    """Return the end of a flow from a copy to the host to the one that brings its bytes back."""
    entry = copy.moved.saved
    ends: Event = {"ph": "s"} if thread == TO_HOST else {"ph": "f", "bp": "e"}
    name = f"{rank}.{entry.stage}.{entry.microbatch}"
    moment = microseconds(copy.start_seconds)
    return {"name": "offload", "cat": "copy", "id": name, **ends, "ts": moment, "pid": rank, "tid": thread}


def _held(timeline: PassTimeline, rank: int, copies: Copies, sizes: Sizes) -> Iterator[Event]:
    """Yield the bytes of activations on a rank, and on its host where any go there, whenever they change."""
    counters = {
        "activations": device_bytes(
            timeline,
            rank,
            copies,
            activation_bytes_V=sizes.activation_bytes_V,
            weight_gradient_bytes_V=sizes.weight_gradient_bytes_V,
        ),
        "activations on the host": host_bytes(copies, activation_bytes_V=sizes.activation_bytes_V),
    }
    for name, held in counters.items():
        for seconds, number in held:
            yield {"name": name, "ph": "C", "ts": microseconds(seconds), "pid": rank, "args": {"bytes": number}}
