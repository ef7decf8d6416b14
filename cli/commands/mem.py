"""`shardwright mem`: the memory of one layout, without any file."""

from typing import Annotated, Literal

import typer

from cli.exits import ExitCode
from cli.named_model import read_named_model
from cli.options import FormatOption
from cli.output import Format, print_blocks, print_json
from planner.layout import Granularity
from planner.requests.request import DEFAULT_MEMORY_HEADROOM
from planner.requests.workload import Precision

EXAMPLES = (
    "shardwright mem llama-3.1-70b --gpu h100-sxm-80gb --tp 8 --pp 4 --dp 2",
    "shardwright mem llama-3.1-70b --tp 8 --cp 4 --pp 4 --seq-len 131072",
    "shardwright mem path/to/config.json --gpu l40s --tp 4 --recompute full --format json",
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Bundled model, or path of a config.json or its directory.", show_default=False
    ),
]
GpuOption = Annotated[str, typer.Option("--gpu", help="GPU of the catalogue (`shardwright clusters`).")]
TpOption = Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel degree.")]
PpOption = Annotated[int, typer.Option("--pp", min=1, help="Pipeline-parallel degree.")]
VppOption = Annotated[int, typer.Option("--vpp", min=1, help="Virtual stages per pipeline rank.")]
CpOption = Annotated[int, typer.Option("--cp", min=1, help="Context-parallel degree, as a ring.")]
EpOption = Annotated[int, typer.Option("--ep", min=1, help="Expert-parallel degree.")]
EtpOption = Annotated[int, typer.Option("--etp", min=1, help="Tensor-parallel degree of the routed experts.")]
DpOption = Annotated[int, typer.Option("--dp", min=1, help="Data-parallel degree.")]
ZeroOption = Annotated[
    int,
    typer.Option(
        "--zero-stage",
        min=0,
        max=3,
        help="Split over dp and cp: 0 nothing, 1 optimizer states, 2 gradients, 3 weights too.",
    ),
]
SequenceOption = Annotated[int, typer.Option("--seq-len", min=1, help="Tokens of one sequence.")]
MicroBatchOption = Annotated[int, typer.Option("--micro-batch-size", min=1, help="Sequences of one micro-batch.")]
MicrobatchesOption = Annotated[
    int | None,
    typer.Option(
        "--num-microbatches",
        min=1,
        help="Micro-batches of one step on one replica; memory grows with them up to the pipeline's depth.",
        show_default="pp",
    ),
]
SequenceParallelOption = Annotated[
    bool,
    typer.Option("--sequence-parallel/--no-sequence-parallel", help="Split norms and residuals over tp, where tp > 1."),
]
RecomputeOption = Annotated[
    Literal["none", "selective", "full"], typer.Option("--recompute", help="How much is recomputed in backward.")
]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="What matrix multiplications run in.")]
HeadroomOption = Annotated[
    float, typer.Option("--memory-headroom", min=0.0, max=0.9, help="Fraction of the GPU's memory left free.")
]


def mem(
    model: ModelArgument,
    *,
    gpu: GpuOption = "h100-sxm-80gb",
    tp: TpOption = 1,
    pp: PpOption = 1,
    vpp: VppOption = 1,
    cp: CpOption = 1,
    ep: EpOption = 1,
    etp: EtpOption = 1,
    dp: DpOption = 1,
    zero_stage: ZeroOption = 1,
    seq_len: SequenceOption = 4096,
    micro_batch_size: MicroBatchOption = 1,
    num_microbatches: MicrobatchesOption = None,
    sequence_parallel: SequenceParallelOption = True,
    recompute: RecomputeOption = "none",
    precision: PrecisionOption = Precision.BF16,
    memory_headroom: HeadroomOption = DEFAULT_MEMORY_HEADROOM,
    format_: FormatOption = Format.TEXT,
) -> None:
    """Show the memory of one layout, no file needed.

    Adam with fp32 states; layers are spread as evenly as they can be. Ends with 3 when the layout does not fit.
    """
    from cli.render_mem import mem_blocks, mem_document
    from planner.requests.workload import TrainWorkload
    from planner.search.mem import Degrees, memory_table
    from profiles.catalogue import load_device

    degrees = Degrees(
        tp=tp,
        sequence_parallel=sequence_parallel and tp > 1,
        pp=pp,
        vpp=vpp,
        cp=cp,
        ep=ep,
        etp=etp,
        dp=dp,
        zero_stage=zero_stage if dp * cp > 1 else 0,
        micro_batch_size=micro_batch_size,
        num_microbatches=pp if num_microbatches is None else num_microbatches,
        recompute=Granularity(recompute),
    )
    workload = TrainWorkload(
        seq_len=seq_len,
        global_batch_size=dp * micro_batch_size * degrees.num_microbatches,
        precision=precision,
    )
    device = load_device(gpu)
    spec = read_named_model(model, where="MODEL")
    table = memory_table(spec, device, workload, degrees, memory_headroom=memory_headroom)
    if format_ is Format.JSON:
        print_json(mem_document(spec, device, workload, table))
    else:
        print_blocks(mem_blocks(spec, device, workload, table))
    if not table.fits:
        raise typer.Exit(ExitCode.INFEASIBLE)
