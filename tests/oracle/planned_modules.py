"""The model that is shipped for DeepSpeed, run on the CPU with what autograd keeps of it on a GPU.

Where a GPU has a kernel of its own that a CPU lacks, a stand-in keeps what that kernel keeps: norms (on a CPU RMSNorm
is a formula, and LayerNorm keeps statistics in 16 bit), flash and fused attention, dropout. The unfused core is
PyTorch's formula on both. Everything else runs as it is.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import planner
from planner.emit.deepspeed import MODEL_FACTS
from planner.models.blocks import Block
from planner.models.specs import ModelSpec
from planner.requests.workload import AttentionKernel, TrainWorkload
from tests.oracle.torch_kernels import BF16, Tensor, functional, torch

PROGRAM = Path(planner.__file__).parent / "data" / "deepspeed" / "planned_model.py"
SEED = 1


@cache
def planned_model() -> ModuleType:
    """Return the shipped file as a module."""
    spec = importlib.util.spec_from_file_location(PROGRAM.stem, PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PROGRAM.stem] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def facts_of(model: ModelSpec) -> Any:
    """Return the shapes as `model.json` names them."""
    facts = dataclasses.asdict(model)
    return json.loads(json.dumps({name: facts[name] for name in MODEL_FACTS}))


class KernelNorm(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """A norm's kernel: it keeps its input, its weights and one or two fp32 numbers a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, centred: bool, *weights: Tensor | None) -> Tensor:
        statistics = [torch.zeros(x.shape[:-1], dtype=torch.float32) for _ in range(1 + centred)]
        ctx.save_for_backward(x, *statistics, *(weight for weight in weights if weight is not None))
        return x.clone(memory_format=torch.contiguous_format)


class KernelAttention(torch.autograd.Function):  # type: ignore[misc]
    """Flash or fused attention: it keeps queries, keys, values, mask, output and the log-sum-exp of each row."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, tokens, _ = query.shape
        out = query.new_zeros(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        bias = () if mask is None else (mask.to(query.dtype),)  # the kernels add what they mask
        rows = torch.zeros(batch, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, rows, *bias)
        return out


def _attention(kernel: AttentionKernel, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    if kernel is AttentionKernel.FUSED:
        assert key.shape[1] == query.shape[1]
    else:
        assert value.shape[-1] == query.shape[-1]
    # On a GPU flash attention takes windows by another package, without a mask.
    mask = options["attn_mask"] if kernel is AttentionKernel.FUSED else None
    return KernelAttention.apply(query, key, value, mask)


def _dropout(x: Tensor, probability: float, training: bool, _inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, probability, training)[0] if probability else x


def _rms_norm(x: Tensor, _width: Any, weight: Tensor | None, _epsilon: float) -> Tensor:
    return KernelNorm.apply(x, False, weight)


def _layer_norm(x: Tensor, _width: Any, weight: Tensor | None, bias: Tensor | None, _epsilon: float) -> Tensor:
    return KernelNorm.apply(x, True, weight, bias)


@contextmanager
def as_on_a_gpu(kernel: AttentionKernel) -> Iterator[None]:
    """Put the stand-ins in place."""
    stand_ins: dict[str, Any] = {"rms_norm": _rms_norm, "layer_norm": _layer_norm, "dropout": _dropout}
    if kernel is AttentionKernel.UNFUSED:
        attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    else:
        attention = mock.patch.object(functional, "scaled_dot_product_attention", partial(_attention, kernel))
    with mock.patch.multiple(functional, **stand_ins), attention:
        yield


@dataclass(slots=True)
class Kept:
    """Bytes of every storage that autograd keeps, parameters and `shared` tensors left out.

    Args:
        shared: Tensors that do not count.
        storages: Bytes by address; the tensors are held so that no address is used twice.
    """

    shared: set[int] = field(default_factory=set)
    storages: dict[int, int] = field(default_factory=dict)
    held: list[Tensor] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        """Return the bytes of all of them."""
        return sum(self.storages.values())

    def leave_out(self, *tensors: Tensor) -> None:
        """Not count these."""
        self.held += tensors
        self.shared |= {address(tensor) for tensor in tensors}

    def watch(self) -> Any:
        """Return the context in which everything that autograd keeps is counted."""

        def pack(tensor: Tensor) -> Tensor:
            if address(tensor) not in self.shared:
                self.held.append(tensor)
                self.storages[address(tensor)] = int(tensor.untyped_storage().nbytes())
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


def address(tensor: Tensor) -> int:
    """Return where a tensor's storage lies."""
    return int(tensor.untyped_storage().data_ptr())


@contextmanager
def in_bf16() -> Iterator[None]:
    """Build modules and tensors in bf16."""
    torch.set_default_dtype(BF16)
    yield
    torch.set_default_dtype(torch.float32)


def context_of(workload: TrainWorkload) -> Any:
    """Return what the shipped layers are told of a run."""
    return planned_model().Context(
        attention=workload.attention_kernel.value,
        attention_dropout=workload.attention_dropout,
        hidden_dropout=workload.hidden_dropout,
    )


def kept_by(module: Any, inputs: tuple[Tensor, ...], workload: TrainWorkload) -> int:
    """Return the bytes that `module` keeps of `inputs`, without the tables of rotary angles, which all layers share."""
    kept, program = Kept(), planned_model()
    kept.leave_out(*module.parameters())
    angles = program._angles

    def noted(*arguments: Any) -> Any:
        tables = angles(*arguments)
        kept.leave_out(*tables)
        return tables

    with as_on_a_gpu(workload.attention_kernel), mock.patch.object(program, "_angles", noted), kept.watch():
        module(*inputs)
    return kept.num_bytes


def planned_block(model: ModelSpec, block: Block, workload: TrainWorkload) -> Any:
    """Return one decoder layer of the shipped model."""
    shapes = json.loads(json.dumps(dataclasses.asdict(block)))
    return planned_model().Block(facts_of(model), shapes, context_of(workload), SEED)


def peak_allocated_bytes(step: Callable[[], None]) -> int:
    """Return the most that PyTorch has allocated at a time while `step` runs, beyond what it began with."""
    step()  # what is allocated once and stays is not counted
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
