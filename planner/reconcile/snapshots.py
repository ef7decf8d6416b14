"""Reads a memory snapshot of torch: the blocks that its CUDA allocator holds, and which were live at the peak.

`torch.cuda.memory._dump_snapshot` pickles plain values: `segments` with their blocks, and `device_traces`, the history
of allocations since `_record_memory_history` began. A pickle can name any code to be run; here it may name none:
whatever is not a dictionary, list, tuple, text, number or None is refused.

The peak is replayed from the history: what is live at its end is known, each `alloc` and `free_completed` before it
is undone. A block that was there before the history began has the frames of the snapshot, or none.
"""

import io
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError, Location

LARGEST_SNAPSHOT = 4 << 30
MOST_BYTES = 1 << 50
LIVE = ("active_allocated", "active_awaiting_free", "active_pending_free")

_BROKEN = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    IndexError,
    KeyError,
    AttributeError,
    TypeError,
    OverflowError,
    ImportError,
    MemoryError,
    RecursionError,
)
"""What a damaged pickle raises (pickle, "Unpickling"): any of these, and nothing is done by then."""


@dataclass(frozen=True, slots=True)
class Block:
    """Memory that was asked for at once.

    Args:
        num_bytes: What it takes.
        frames: Where it was asked for, "file:function", the innermost first; empty where it is not known.
    """

    num_bytes: int
    frames: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What one device holds.

    Args:
        file: The file.
        blocks: Live blocks, at the peak of the history or when the snapshot was taken.
        reserved_bytes: What the allocator held from the driver when it was taken.
        at_peak: There is a history, and the blocks are those at its peak.
    """

    file: str
    blocks: tuple[Block, ...]
    reserved_bytes: int
    at_peak: bool


class _PlainUnpickler(pickle.Unpickler):
    """Reads plain values alone."""

    def find_class(self, module_name: str, global_name: str, /) -> object:
        """Refuse to load anything.

        Raises:
            UnpicklingError: Always.
        """
        raise pickle.UnpicklingError(f"it wants to load {module_name}.{global_name}, and a snapshot holds plain values")


def read_snapshot(path: Path) -> Snapshot:
    """Return what a snapshot holds, of the device that holds most.

    Raises:
        InputError: It is none, is damaged, or holds more than plain values.
    """
    data = _loaded(path)
    segments = data.get("segments") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(segments, list):
        raise _refused(path, "There is no list of segments.")
    try:
        return _snapshot(path, data, segments)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise _refused(path, f"The snapshot is damaged: {said}.") from None


def _refused(path: Path, message: str) -> InputError:
    return InputError(
        message, location=Location(file=str(path)), hint="Give what torch.cuda.memory._dump_snapshot wrote."
    )


def _loaded(path: Path) -> object:
    try:
        if path.is_dir():
            raise _refused(path, "This is a directory.")
        if path.stat().st_size > LARGEST_SNAPSHOT:
            raise _refused(path, f"The file is larger than {LARGEST_SNAPSHOT >> 30} GiB.")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise _refused(path, f"The file cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        return _PlainUnpickler(io.BytesIO(raw)).load()
    except _BROKEN as error:
        raise _refused(path, f"This is no snapshot: {str(error) or type(error).__name__}.") from None


def _snapshot(path: Path, data: Mapping[str, object], segments: Sequence[Mapping[str, object]]) -> Snapshot:
    """Return the device that holds most."""
    by_device: dict[int, list[Mapping[str, object]]] = {}
    for segment in segments:
        by_device.setdefault(_whole(segment.get("device", 0)), []).append(segment)
    if not by_device:
        raise _refused(path, "It holds no memory.")
    reserved = {device: sum(_whole(part["total_size"]) for part in parts) for device, parts in by_device.items()}
    device = max(reserved, key=lambda number: (reserved[number], -number))
    live = dict(_live(by_device[device]))
    history = _history(data.get("device_traces"), device)
    blocks = _at_peak(live, history) if history else tuple(live.values())
    return Snapshot(file=str(path), blocks=blocks, reserved_bytes=reserved[device], at_peak=bool(history))


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_BYTES:
        raise ValueError(f"{str(value)[:40]!r} is no number of bytes")
    return value


def _address(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{str(value)[:40]!r} is no address")  # noqa: TRY004 - all that is wrong is one error
    return value


def _frames(value: object) -> tuple[str, ...]:
    """Return frames as "file:function", those of C++ too where they were recorded."""
    frames = value if isinstance(value, list) else []
    return tuple(f"{frame.get('filename', '')}:{frame.get('name', '')}" for frame in frames if isinstance(frame, dict))


def _live(segments: Sequence[Mapping[str, object]]) -> Iterator[tuple[int, Block]]:
    """Yield the live blocks by address; older versions of torch leave a block's own out."""
    for segment in segments:
        address = _address(segment.get("address", 0))
        blocks = segment["blocks"]
        if not isinstance(blocks, list):
            raise TypeError("blocks is no list")
        for block in blocks:
            size = _whole(block["size"])
            if block["state"] in LIVE:
                frames = _frames(block.get("frames"))
                for entry in block.get("history", [])[:1] if not frames else []:
                    frames = _frames(entry.get("frames"))
                asked = _whole(block.get("requested_size", size))
                yield _address(block.get("address", address)), Block(asked, frames)
            address += size


def _history(traces: object, device: int) -> list[Mapping[str, object]]:
    """Return the allocations and frees of a device; none where nothing was recorded."""
    if not isinstance(traces, list) or device >= len(traces) or not isinstance(traces[device], list):
        return []
    return [entry for entry in traces[device] if entry.get("action") in ("alloc", "free_completed")]


def _at_peak(live: Mapping[int, Block], history: Sequence[Mapping[str, object]]) -> tuple[Block, ...]:
    """Return the blocks at the moment of the history at which most was live."""
    now = dict(live)
    total = peak = sum(block.num_bytes for block in now.values())
    peak_at = len(history)
    for index in range(len(history) - 1, -1, -1):
        total += _undone(now, history[index], _nothing_known)
        if total > peak:
            peak, peak_at = total, index
    origins = _origins(history)
    now = dict(live)
    for index in range(len(history) - 1, peak_at - 1, -1):
        _undone(now, history[index], origins.get(index, _nothing_known))
    return tuple(now.values())


_nothing_known: tuple[str, ...] = ()


def _undone(now: dict[int, Block], entry: Mapping[str, object], frames: tuple[str, ...]) -> int:
    """Undo one allocation or free, and return by how much what is live grows."""
    address, size = _address(entry["addr"]), _whole(entry["size"])
    if entry["action"] == "alloc":
        gone = now.pop(address, None)
        return -gone.num_bytes if gone is not None else 0
    now[address] = Block(size, frames)
    return size


def _origins(history: Sequence[Mapping[str, object]]) -> dict[int, tuple[str, ...]]:
    """Return for each free where its block was asked for, as far as the history goes back."""
    asked: dict[int, tuple[str, ...]] = {}
    found = {}
    for index, entry in enumerate(history):
        address = _address(entry["addr"])
        if entry["action"] == "alloc":
            asked[address] = _frames(entry.get("frames"))
        else:
            found[index] = asked.pop(address, ())
    return found
