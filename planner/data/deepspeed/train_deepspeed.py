"""Trains a decoder with DeepSpeed as a plan says: ZeRO 0 to 3, pipeline stages, AutoTP or Ulysses.

DeepSpeed's own part of the plan is `ds_config.json`. What it cannot say are arguments: how many decoder layers each
pipeline stage holds, whether layers are recomputed, which attention kernel runs. The model is built from `model.json`,
or with --model it is a Hugging Face model (transformers must be installed; no pipeline stages, no Ulysses).

Every sequence is picked by its number in the run, so that layouts that train the same batch see the same tokens.
Needs torch and deepspeed, and planned_model.py beside this file. Checked with deepspeed 0.19.8 and torch 2.13.0.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from deepspeed.module_inject.layers import VocabParallelEmbedding
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.sequence_parallel import parallel_state_sp
from deepspeed.sequence.layer import DistributedAttention
from deepspeed.utils import groups
from planned_model import (
    Block,
    Context,
    Decoder,
    Facts,
    Head,
    Norm,
    Positions,
    TokenTable,
    block_facts,
    layer_seed,
    read_facts,
)
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the processes share the work, from configuration and arguments.

    Args:
        stages: Decoder layers of each pipeline stage.
        tensor: Tensor-parallel processes.
        sequence: Processes that share each sequence.
        data: Processes that train different sequences.
        zero_stage: What ZeRO splits.
        micro_batch: Sequences of one micro-batch.
        micro_batches: Micro-batches of one step.
        gradient_scale: Factor of the loss that makes DeepSpeed's mean gradient the right one.
        recompute: Every layer is recomputed in backward.
        dtype: Format of weights and activations.
    """

    stages: tuple[int, ...]
    tensor: int
    sequence: int
    data: int
    zero_stage: int
    micro_batch: int
    micro_batches: int
    gradient_scale: int
    recompute: bool
    dtype: torch.dtype

    @property
    def global_batch(self) -> int:
        """Return the sequences of one step."""
        return self.micro_batch * self.micro_batches * self.data


def main() -> None:
    """Train."""
    arguments = parse_arguments()
    config = json.loads(arguments.deepspeed_config.read_text(encoding="utf-8"))
    deepspeed.init_distributed(verbose=False)
    layout = layout_of(arguments, config)
    mpu = process_groups(layout)
    if arguments.model is None:
        facts = read_facts(arguments.model_facts)
        require_fit(facts, layout, arguments)
        build = pipeline if len(layout.stages) > 1 else decoder
        model = build(facts, arguments, layout, config, mpu)
        vocab_size = facts["vocab_size"]
    else:
        model, vocab_size = hugging_face_model(arguments, layout, config, mpu)
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=[p for p in model.parameters() if p.requires_grad], config=config, mpu=mpu
    )
    if engine.train_batch_size() != layout.global_batch:
        raise SystemExit(f"DeepSpeed trains {engine.train_batch_size()} sequences a step, not {layout.global_batch}.")
    report_parameters(engine.module, layout)
    done = resume(engine, arguments.load)
    sequences = Sequences(arguments, layout, vocab_size)
    for step in range(done, arguments.steps):
        started = time.perf_counter()
        loss = train_step(engine, sequences, layout, step)
        seconds = time.perf_counter() - started
        norm = engine.get_global_grad_norm()
        norm = float("nan") if norm is None else float(norm)
        tokens = layout.global_batch * arguments.seq_len / seconds
        say(
            f"step {step + 1}/{arguments.steps} loss {loss:.6f} grad_norm {norm:.6f} seconds {seconds:.3f} "
            f"tokens_per_second {tokens:.0f} peak_memory_gib {peak_memory_gib():.3f}"
        )
        last = step + 1 == arguments.steps
        if arguments.save is not None and (last or (step + 1) % arguments.save_interval == 0):
            engine.save_checkpoint(str(arguments.save), client_state={"step": step + 1})
    comm.destroy_process_group()


def parse_arguments() -> argparse.Namespace:
    """Return the arguments, checked as far as they can be alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepspeed-config", type=Path, required=True, help="DeepSpeed's JSON")
    parser.add_argument("--model-facts", type=Path, help="JSON with the model's shapes")
    parser.add_argument("--model", help="Hugging Face model instead: a directory or a name")
    parser.add_argument("--layers-per-stage", required=True, help="decoder layers of each stage, as 10,12,12,10")
    parser.add_argument("--recompute", choices=("none", "full"), default="none")
    parser.add_argument("--seq-len", type=int, required=True, help="tokens of one sequence")
    parser.add_argument("--padded-vocab-size", type=int, help="rows of the embedding table")
    parser.add_argument("--attention", choices=("flash", "fused", "unfused"), default="flash")
    parser.add_argument("--attention-dropout", type=float, default=0.0)
    parser.add_argument("--hidden-dropout", type=float, default=0.0)
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="files of token numbers; without: mock tokens")
    parser.add_argument("--data-type", choices=("uint16", "uint32"), default="uint16")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--save", type=Path, help="directory for checkpoints")
    parser.add_argument("--save-interval", type=int, default=500, help="steps between checkpoints")
    parser.add_argument("--load", type=Path, help="directory of checkpoints to go on from")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    arguments = parser.parse_args()
    if arguments.model is None and arguments.model_facts is None:
        parser.error("give --model-facts or --model")
    try:
        arguments.stages = tuple(int(count) for count in arguments.layers_per_stage.split(","))
    except ValueError:
        parser.error(f"--layers-per-stage {arguments.layers_per_stage}: write numbers with commas")
    return arguments


def layout_of(arguments: argparse.Namespace, config: dict[str, Any]) -> Layout:
    """Return the layout that configuration and arguments say, or exit where they contradict one another."""
    tensor = config.get("tensor_parallel", {}).get("autotp_size", 1)
    sequence, world = config.get("sequence_parallel_size", 1), comm.get_world_size()
    stages: tuple[int, ...] = arguments.stages
    if sum(degree > 1 for degree in (tensor, sequence, len(stages))) > 1:
        raise SystemExit("Use one of AutoTP, Ulysses and pipeline stages.")
    data, rest = divmod(world, tensor * sequence * len(stages))
    if rest:
        raise SystemExit(f"{world} processes are no multiple of {tensor} x {sequence} x {len(stages)} stages.")
    if arguments.seq_len % sequence:
        raise SystemExit(f"{arguments.seq_len} tokens do not split over {sequence} processes.")
    dtype = torch.float32
    for name, section in (("bfloat16", "bf16"), ("float16", "fp16")):
        if config.get(section, {}).get("enabled"):
            dtype = getattr(torch, name)
    zero = config.get("zero_optimization", {})
    zero_stage = zero.get("stage", 0)
    # The processes of a sequence each have a part of its loss, so their gradients must add up. Stages 0 to 2 divide by
    # the data-parallel processes alone; the reduce-scatter of stage 3 divides by all (`reduce_scatter_coalesced`).
    averaged = zero_stage == 3 and zero.get("reduce_scatter", True)
    return Layout(
        stages=stages,
        tensor=tensor,
        sequence=sequence,
        data=data,
        zero_stage=zero_stage,
        gradient_scale=sequence if averaged else 1,
        micro_batch=config["train_micro_batch_size_per_gpu"],
        micro_batches=config["gradient_accumulation_steps"],
        recompute=arguments.recompute == "full",
        dtype=dtype,
    )


def require_fit(facts: Facts, layout: Layout, arguments: argparse.Namespace) -> None:
    """Exit where model and layout do not go together."""
    layers = len(block_facts(facts))
    if sum(layout.stages) != layers:
        raise SystemExit(f"--layers-per-stage place {sum(layout.stages)} layers, the model has {layers}.")
    rows = arguments.padded_vocab_size or facts["vocab_size"]
    if rows < facts["vocab_size"] or rows % layout.tensor:
        raise SystemExit(f"--padded-vocab-size {rows}: at least {facts['vocab_size']}, in {layout.tensor} equal parts.")
    arguments.padded_vocab_size = rows


def process_groups(layout: Layout) -> Any:
    """Make the groups of AutoTP or Ulysses, and return what tells DeepSpeed about them.

    With AutoTP the engine makes its groups only after the batch was checked against all processes; made before and
    handed over, they have it checked against the data-parallel ones. Pipeline stages bring groups of their own.
    """
    if layout.tensor > 1:
        deepspeed.set_autotp_mode(training=True)
        groups._init_tp_mesh_device(tensor_model_parallel_size=layout.tensor)  # noqa: SLF001 - there is no other way
        return groups
    if layout.sequence > 1:
        parallel_state_sp.initialize_sequence_parallel(layout.sequence)
        return parallel_state_sp
    return None


class Ulysses(nn.Module):
    """An attention core that sees whole sequences of a part of the heads (Jacobs et al., arXiv 2309.14509)."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        group = parallel_state_sp.get_sequence_parallel_group()
        self.attention = DistributedAttention(core, group, scatter_idx=2, gather_idx=1)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Return the attended values of this process's tokens; the batch is dimension 0."""
        return self.attention(query, key, value, 0)


class SummedGradients(torch.autograd.Function):
    """What every tensor-parallel process reads whole and uses for its own heads: the gradients are added up."""

    @staticmethod
    def forward(_context: Any, shared: Tensor) -> Tensor:
        """Return the input."""
        return shared.view_as(shared)

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        """Return the sum of the processes' gradients."""
        gradient = gradient.contiguous()
        comm.all_reduce(gradient, group=groups.get_tensor_model_parallel_group())
        return gradient


def context_of(arguments: argparse.Namespace, layout: Layout) -> Context:
    """Return what layers are told besides their shapes."""
    context = Context(
        attention=arguments.attention,
        attention_dropout=arguments.attention_dropout,
        hidden_dropout=arguments.hidden_dropout,
    )
    if layout.tensor > 1:
        return replace(context, split_heads=SummedGradients.apply)
    if layout.sequence == 1:
        return context
    rank = parallel_state_sp.get_sequence_parallel_rank()
    return replace(context, sequence_rank=rank, sequence_size=layout.sequence, distribute=Ulysses)


def decoder(facts: Facts, arguments: argparse.Namespace, layout: Layout, config: dict[str, Any], mpu: Any) -> nn.Module:
    """Return the whole model: split as it is built with ZeRO-3, in host memory until AutoTP has split it."""
    if layout.recompute:
        configure_checkpointing(config)
    checkpoint = deepspeed.checkpointing.checkpoint if layout.recompute else None
    with building(layout, config, mpu):
        model = Decoder(facts, arguments.padded_vocab_size, context_of(arguments, layout), checkpoint, arguments.seed)
    if layout.tensor > 1 and not facts["tie_word_embeddings"]:
        # AutoTP splits an embedding by rows only together with a tied head.
        embedding = VocabParallelEmbedding(
            model.embed_tokens, groups.get_tensor_model_parallel_group(), name="embed_tokens"
        )
        embedding.replaced = True
        model.embed_tokens = embedding
    return model


def configure_checkpointing(config: dict[str, Any]) -> None:
    """Tell DeepSpeed how to keep the inputs of recomputed layers; given the whole file it would check batches too."""
    section = config.get("activation_checkpointing", {})
    deepspeed.checkpointing.configure(
        None,
        partition_activations=section.get("partition_activations", False),
        contiguous_checkpointing=section.get("contiguous_memory_optimization", False),
        num_checkpoints=section.get("number_checkpoints"),
        checkpoint_in_cpu=section.get("cpu_checkpointing", False),
    )


def building(layout: Layout, config: dict[str, Any], mpu: Any) -> AbstractContextManager[Any]:
    """Return the context in which a model is built: where, in which format, and split by ZeRO-3."""
    stack = ExitStack()
    if layout.zero_stage == 3:
        stack.enter_context(deepspeed.zero.Init(config_dict_or_path=config, mpu=mpu))
        return stack
    before = torch.get_default_dtype()
    torch.set_default_dtype(layout.dtype)
    stack.callback(torch.set_default_dtype, before)
    device = "cpu" if layout.tensor > 1 else get_accelerator().current_device_name()
    stack.enter_context(torch.device(device))
    return stack


class PlannedPipeline(PipelineModule):
    """A pipeline whose stages hold as many decoder layers as planned.

    Args:
        bounds: First layer of each stage, and the end of the last.
        arguments: What `PipelineModule` takes.
    """

    def __init__(self, bounds: list[int], **arguments: Any) -> None:
        self.planned_bounds = bounds
        super().__init__(**arguments)

    def _partition_layers(self, method: str = "planned") -> None:
        """Take the planned bounds; the methods of `PipelineModule` balance by themselves."""
        del method
        self.parts = self.planned_bounds
        self._set_bounds(start=self.parts[self.stage_id], stop=self.parts[self.stage_id + 1])


def pipeline(
    facts: Facts, arguments: argparse.Namespace, layout: Layout, config: dict[str, Any], mpu: Any
) -> nn.Module:
    """Return this process's stage of the model."""
    context, seed = context_of(arguments, layout), arguments.seed
    hidden, rows = facts["hidden_size"], arguments.padded_vocab_size
    if facts["tie_word_embeddings"]:
        tied = partial(TiedLayerSpec, "token_table", TokenTable, rows, hidden, seed, tied_weight_attr="weight")
        table, head = tied(), tied(forward_fn=logits_by_table)
    else:
        table = LayerSpec(TokenTable, rows, hidden, seed)
        head = LayerSpec(Head, hidden, rows, bias=facts["lm_head_bias"], seed=seed + 2)
    front = [table, LayerSpec(Positions, facts, context, seed + 1)]
    blocks = [
        LayerSpec(Block, facts, shapes, context, layer_seed(seed, index))
        for index, shapes in enumerate(block_facts(facts))
    ]
    back = [LayerSpec(Norm, facts, hidden), head]
    bounds = [0]
    for count in layout.stages:
        bounds.append(bounds[-1] + count)
    bounds = [0, *(len(front) + bound for bound in bounds[1:-1]), len(front) + len(blocks) + len(back)]
    if layout.recompute:
        configure_checkpointing(config)
    with building(layout, config, mpu):
        return PlannedPipeline(
            bounds,
            layers=[*front, *blocks, *back],
            num_stages=len(layout.stages),
            loss_fn=mean_loss,
            checkpointable_layers=[Block.__name__],
        )


def logits_by_table(table: TokenTable, hidden: Tensor) -> Tensor:
    """Return the logits of a tied LM head."""
    return functional.linear(hidden, table.weight)


def mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy in fp32."""
    return functional.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


class CausalModel(nn.Module):
    """A Hugging Face model that is called as the planned one: with tokens and labels, for the loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Return the loss."""
        return mean_loss(self.model(input_ids=tokens, use_cache=False).logits, labels)


def hugging_face_model(
    arguments: argparse.Namespace, layout: Layout, config: dict[str, Any], mpu: Any
) -> tuple[nn.Module, int]:
    """Return a Hugging Face model with its weights, and the size of its vocabulary."""
    if len(layout.stages) > 1 or layout.sequence > 1 or layout.tensor > 1:
        raise SystemExit("--model runs with ZeRO alone: no pipeline stages, no Ulysses, no AutoTP.")
    try:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 - only --model needs it
        from transformers.integrations import HfDeepSpeedConfig  # noqa: PLC0415
    except ImportError:
        raise SystemExit("--model needs the package transformers.") from None
    if layout.zero_stage == 3 and find_spec("accelerate") is None:
        raise SystemExit("--model with ZeRO-3 needs the package accelerate too.")
    # With ZeRO-3 transformers splits what it loads as long as this object lives.
    live = HfDeepSpeedConfig(config) if layout.zero_stage == 3 else None
    kernel = "eager" if arguments.attention == "unfused" else "sdpa"
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=layout.dtype, attn_implementation=kernel)
    del live, mpu
    if layout.recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.enable_input_require_grads()
    return CausalModel(model), model.config.vocab_size


def report_parameters(model: nn.Module, layout: Layout) -> None:
    """Print how many parameters a process of each pipeline stage computes with; what ZeRO-3 splits counts whole."""
    held = sum(getattr(p, "ds_numel", p.numel()) for p in model.parameters())
    stages = len(layout.stages)
    per_stage = comm.get_world_size() // stages
    counts = torch.zeros(stages, dtype=torch.int64, device=get_accelerator().current_device_name())
    if comm.get_rank() % per_stage == 0:
        counts[comm.get_rank() // per_stage] = held
    comm.all_reduce(counts)
    say(f"parameters {' '.join(str(count) for count in counts.tolist())}")


def resume(engine: deepspeed.DeepSpeedEngine, folder: Path | None) -> int:
    """Load the newest checkpoint, and return how many steps it has seen."""
    if folder is None:
        return 0
    path, state = engine.load_checkpoint(str(folder))
    if path is None:
        raise SystemExit(f"--load {folder}: there is no checkpoint of this program.")
    return int(state["step"])


class Sequences:
    """The token sequences of a run: mock tokens, or a file's in order, over and over.

    Args:
        arguments: Name the files and the length.
        layout: Says which sequences are this process's.
        vocab_size: Tokens that there are.
    """

    def __init__(self, arguments: argparse.Namespace, layout: Layout, vocab_size: int) -> None:
        self.length, self.seed, self.vocab_size = arguments.seq_len, arguments.seed, vocab_size
        self.layout = layout
        within_stage = comm.get_rank() % (comm.get_world_size() // len(layout.stages))
        self.data_rank = within_stage // (layout.tensor * layout.sequence)
        self.sequence_rank = within_stage % layout.sequence
        self.files = [np.memmap(path, dtype=arguments.data_type, mode="r") for path in arguments.data]
        self.counts = [(len(file) - 1) // self.length for file in self.files]
        if self.files and min(self.counts) < 1:
            raise SystemExit(f"--data: each file needs at least {self.length + 1} tokens.")

    def micro_batches(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield tokens and labels of each micro-batch of one step, this process's part of each sequence."""
        for index in range(self.layout.micro_batches):
            first = (index * self.layout.data + self.data_rank) * self.layout.micro_batch
            first += step * self.layout.global_batch
            batch = torch.stack([self._sequence(first + row) for row in range(self.layout.micro_batch)])
            part = self.length // self.layout.sequence
            start = self.sequence_rank * part
            batch = batch.to(get_accelerator().current_device_name())
            yield batch[:, start : start + part].contiguous(), batch[:, start + 1 : start + part + 1].contiguous()

    def _sequence(self, number: int) -> Tensor:
        """Return one sequence and the token behind it."""
        if not self.files:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            return torch.randint(self.vocab_size, (self.length + 1,), generator=generator)
        number %= sum(self.counts)
        for file, count in zip(self.files, self.counts, strict=True):
            if number < count:
                start = number * self.length
                tokens = torch.from_numpy(file[start : start + self.length + 1].astype(np.int64))
                if int(tokens.max()) >= self.vocab_size:
                    raise SystemExit(f"--data: token {int(tokens.max())}, the model knows {self.vocab_size}.")
                return tokens
            number -= count
        raise AssertionError("every number is in some file")


def train_step(engine: deepspeed.DeepSpeedEngine, sequences: Sequences, layout: Layout, step: int) -> float:
    """Train one step, and return the mean loss over its tokens."""
    if len(layout.stages) > 1:
        return float(engine.train_batch(sequences.micro_batches(step)))
    total = torch.zeros((), device=get_accelerator().current_device_name())
    for tokens, labels in sequences.micro_batches(step):
        loss = engine(tokens, labels)
        engine.backward(loss * layout.gradient_scale)
        engine.step()
        total += loss.detach().float()
    comm.all_reduce(total)  # the parts of a sequence add up; tensor-parallel processes hold the same loss
    return float(total) / (layout.micro_batches * layout.data * layout.tensor)


def peak_memory_gib() -> float:
    """Return the largest peak of the allocator so far, over all processes."""
    peak = torch.tensor(float(get_accelerator().max_memory_allocated()), dtype=torch.float64)
    peak = peak.to(get_accelerator().current_device_name())
    comm.all_reduce(peak, op=comm.ReduceOp.MAX)
    return float(peak) / (1 << 30)


def say(text: str) -> None:
    """Print a line once."""
    if comm.get_rank() == 0:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
