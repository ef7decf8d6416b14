"""The operators of each kind of layer, unsharded.

One graph per kind of layer: the embedding, each distinct block, and the head (final norm, LM head, loss). An operator
says what it computes (`work`), which weights it owns, which tensors it keeps for backward, and whether activations
cross the boundary between the residual region and the tensor-parallel region around it. Time, memory, parameters and
model flops are all read from this one graph, so they cannot disagree.

Two regions of activations, as in Megatron-LM's sequence parallelism (Korthikanti et al., arXiv 2205.05198, figure 5):

- RESIDUAL: norms, dropouts, residual additions. Every feature on every rank; tokens split over tp with sequence
  parallelism, else whole.
- SHARDED: between a column-parallel and a row-parallel linear layer. Every token; features split over tp.

Saved tensors follow what the fused kernels of Megatron-LM with Transformer Engine keep: a norm keeps its input, a
linear layer its input, the activation its input, attention its q, k, v, output and the log-sum-exp of each row (Dao,
arXiv 2307.08691), or the score matrix when it is unfused. A tensor that two operators keep is one tensor: names are
unique within a layer. For an MHA layer with a 4h GELU feed-forward and dropout this gives the published
`s b h (10 + 24 / t)` plus attention (arXiv 2205.05198, equation 2), which a test asserts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from planner.specs import (
    AttentionKernel,
    Block,
    DenseFeedForward,
    DType,
    ModelSpec,
    Norm,
    PositionEmbedding,
    SelfAttention,
    TrainMethod,
    TrainWorkload,
)


class Region(StrEnum):
    """Where an activation lives; see the module's docstring."""

    RESIDUAL = "residual"
    SHARDED = "sharded"


class Parallel(StrEnum):
    """Which dimension of a linear layer's weight is split over tp."""

    COLUMN = "column"
    ROW = "row"


class Module(StrEnum):
    """Parts of a layer that selective recompute can run again, by Megatron-LM's names."""

    CORE_ATTENTION = "core_attn"
    MLP = "mlp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter tensor.

    Args:
        name: Unique within its layer.
        shape: Its unsharded shape.
        split_dim: Dimension that is split over tp; None keeps it whole on every rank.
        trainable: It has a gradient.
        vocab_dim: Dimension that grows with vocabulary padding; None without.
        shared_with_embedding: It is the embedding table again (tied LM head): a second copy only where the head is
            on another pipeline rank than the embedding.
        gemm_operand: A linear layer multiplies by it (and keeps an fp8 copy under an fp8 recipe).
    """

    name: str
    shape: tuple[int, ...]
    split_dim: int | None
    trainable: bool
    vocab_dim: int | None = None
    shared_with_embedding: bool = False
    gemm_operand: bool = False

    @property
    def num_elements(self) -> int:
        """Return the unsharded, unpadded number of elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One tensor kept from forward to backward.

    Args:
        name: Unique within its layer.
        features: Elements per token.
        element_bytes: Bytes of one element.
        region: How it is split.
        granule: Features stay whole in groups of this many; a rank holds at least one group (key/value heads).
        dropped_by: Recompute module that produces it again instead of keeping it.
    """

    name: str
    features: int
    element_bytes: int
    region: Region
    granule: int = 1
    dropped_by: Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """`y[tokens, out] = x[tokens, in] W`.

    Args:
        in_features: Width of x.
        out_features: Width of y.
        parallel: How W is split.
        dtype: Format of the products.
        trains_weight: Backward computes the gradient of W.
        needs_input_gradient: Backward computes the gradient of x.
        adapter_rank: Rank of a low-rank adapter beside W; 0 without.
        whole_heads: Key/value heads in y; over more ranks than these y is gathered, and each rank picks its heads.
        vocab_output: `out_features` is the vocabulary and grows with its padding.
    """

    in_features: int
    out_features: int
    parallel: Parallel
    dtype: DType
    trains_weight: bool
    needs_input_gradient: bool = True
    adapter_rank: int = 0
    whole_heads: int | None = None
    vocab_output: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreAttention:
    """Softmax attention between projections, causal."""

    attention: SelfAttention
    dtype: DType
    fused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointwise:
    """Work whose time is its memory traffic.

    Args:
        forward_bytes_per_token: Bytes read and written per token, forward.
        backward_bytes_per_token: The same backward.
        region: How its tokens or features are split.
        vocab_features: The byte counts are per token and vocabulary entry.
        num_kernels: Kernels it launches, each way.
    """

    forward_bytes_per_token: int
    backward_bytes_per_token: int
    region: Region
    vocab_features: int = 0
    num_kernels: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookup:
    """The embedding look-up: each tp rank holds a part of the rows, so the partial results are summed."""

    hidden_size: int
    dtype: DType


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReduction:
    """The three per-token all-reduces of a vocabulary-parallel cross entropy: maximum, target logit, sum."""

    num_reductions: int = 3


Work = Linear | CoreAttention | Pointwise | Lookup | LossReduction


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One operator of a layer.

    Args:
        name: Unique within its layer.
        work: What it computes.
        weights: Parameters that it owns.
        saved: Tensors that it keeps for backward.
        module: Recompute module that it belongs to; None is never recomputed selectively.
    """

    name: str
    work: Work
    weights: tuple[Weight, ...] = ()
    saved: tuple[Saved, ...] = ()
    module: Module | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGraph:
    """One layer: its operators in forward order.

    Args:
        name: What kind of layer it is.
        operators: In forward order.
        layer_input: What full recompute keeps; None where nothing enters (the embedding).
    """

    name: str
    operators: tuple[Operator, ...]
    layer_input: Saved | None

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Return every weight of the layer."""
        return tuple(weight for operator in self.operators for weight in operator.weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelGraph:
    """A model: embedding, the graph of each distinct block, head.

    Args:
        embedding: Token (and position) embedding.
        blocks: The graph of each distinct block.
        head: Final norm, LM head, loss.
        hidden_size: Width of the stream between layers.
        stream_bytes: Bytes of one of its elements.
    """

    embedding: LayerGraph
    blocks: Mapping[Block, LayerGraph]
    head: LayerGraph
    hidden_size: int
    stream_bytes: int


GATED_FORWARD_PASSES, GATED_BACKWARD_PASSES = 3, 5  # read gate, up, write; read gate, up, grad, write two
PLAIN_FORWARD_PASSES, PLAIN_BACKWARD_PASSES = 2, 3  # read, write; read input, grad, write
NORM_FORWARD_PASSES, NORM_BACKWARD_PASSES = 2, 3  # read, write; read input, grad, write
RESIDUAL_PASSES = 3  # read branch, read stream, write
LOGIT_FORWARD_BYTES = 22  # cast 2 + 4, maximum 4, subtract and exponentiate in place 8, sum 4
LOGIT_BACKWARD_BYTES = 22  # normalise in place 8, subtract target in place 8, cast 4 + 2
LOGSUMEXP_BYTES = 4


class _BlockBuilder:
    """Builds operators of one model under one workload; holds what they all share."""

    def __init__(self, model: ModelSpec, workload: TrainWorkload) -> None:
        self.model = model
        self.workload = workload
        self.hidden = model.hidden_size
        self.dtype = workload.precision.parameter_dtype
        self.gemm_dtype = workload.precision.gemm_dtype
        self.width = self.dtype.num_bytes
        self.lora = workload.lora
        self.base_trains = workload.method is not TrainMethod.LORA

    def norm(self, name: str, *, input_name: str = "", module: Module | None = None) -> Operator:
        """Return a norm over the residual stream, whose own name it is unless `input_name` says otherwise."""
        return Operator(
            name=name,
            work=Pointwise(
                forward_bytes_per_token=NORM_FORWARD_PASSES * self.hidden * self.width,
                backward_bytes_per_token=NORM_BACKWARD_PASSES * self.hidden * self.width,
                region=Region.RESIDUAL,
            ),
            weights=self.norm_weights(name, self.hidden),
            saved=(
                Saved(
                    name=input_name or f"{name} input",
                    features=self.hidden,
                    element_bytes=self.width,
                    region=Region.RESIDUAL,
                ),
            ),
            module=module,
        )

    def norm_weights(self, name: str, size: int) -> tuple[Weight, ...]:
        """Return a norm's scale and, for LayerNorm, its shift."""
        parts = ("scale",) if self.model.norm is Norm.RMS else ("scale", "shift")
        return tuple(
            Weight(name=f"{name} {part}", shape=(size,), split_dim=None, trainable=self.base_trains) for part in parts
        )

    def linear(  # noqa: PLR0913 - a linear layer has this many facts
        self,
        name: str,
        *,
        in_features: int,
        out_features: int,
        parallel: Parallel,
        bias: bool,
        input_name: str,
        module: Module | None = None,
        input_dropped_by: Module | None = None,
        whole_heads: int | None = None,
    ) -> Operator:
        """Return a linear layer with its weight, bias, adapter and saved input."""
        rank = self.lora.rank if self.lora is not None and name in self.lora.target_modules else 0
        split = 0 if parallel is Parallel.COLUMN else 1
        weights = [
            Weight(
                name=f"{name} weight",
                shape=(out_features, in_features),
                split_dim=split,
                trainable=self.base_trains,
                gemm_operand=True,
            )
        ]
        if bias:
            weights.append(
                Weight(
                    name=f"{name} bias",
                    shape=(out_features,),
                    split_dim=0 if parallel is Parallel.COLUMN else None,
                    trainable=self.base_trains,
                )
            )
        saved: list[Saved] = []
        region = Region.RESIDUAL if parallel is Parallel.COLUMN else Region.SHARDED
        if self.base_trains or rank:
            # An fp8 linear layer keeps the quantised input, which is a tensor of its own; an adapter reads the input
            # in full precision.
            dtype = self.gemm_dtype if self.base_trains else self.dtype
            saved.append(
                Saved(
                    name=input_name if dtype is self.dtype else f"{input_name} in {dtype}",
                    features=in_features,
                    element_bytes=dtype.num_bytes,
                    region=region,
                    dropped_by=input_dropped_by,
                )
            )
        if rank:
            weights += [
                Weight(
                    name=f"{name} adapter A",
                    shape=(rank, in_features),
                    split_dim=None if parallel is Parallel.COLUMN else 1,
                    trainable=True,
                ),
                Weight(
                    name=f"{name} adapter B",
                    shape=(out_features, rank),
                    split_dim=0 if parallel is Parallel.COLUMN else None,
                    trainable=True,
                ),
            ]
            saved.append(
                Saved(
                    name=f"{name} adapter hidden",
                    features=rank,
                    element_bytes=self.width,
                    region=Region.RESIDUAL,
                    dropped_by=module,
                )
            )
        return Operator(
            name=name,
            work=Linear(
                in_features=in_features,
                out_features=out_features,
                parallel=parallel,
                dtype=self.gemm_dtype,
                trains_weight=self.base_trains,
                adapter_rank=rank,
                whole_heads=whole_heads,
            ),
            weights=tuple(weights),
            saved=tuple(saved),
            module=module,
        )

    def residual(self, name: str) -> Operator:
        """Return bias, dropout and residual addition in one kernel."""
        saved: tuple[Saved, ...] = ()
        if self.workload.hidden_dropout > 0:
            saved = (Saved(name=f"{name} dropout mask", features=self.hidden, element_bytes=1, region=Region.RESIDUAL),)
        return Operator(
            name=name,
            work=Pointwise(
                forward_bytes_per_token=RESIDUAL_PASSES * self.hidden * self.width,
                backward_bytes_per_token=RESIDUAL_PASSES * self.hidden * self.width,
                region=Region.RESIDUAL,
            ),
            saved=saved,
        )

    def attention(self, spec: SelfAttention, input_name: str) -> list[Operator]:
        """Return the operators of softmax attention, from projection to projection."""
        heads = spec.num_attention_heads
        qkv = self.linear(
            "qkv",
            in_features=self.hidden,
            out_features=spec.query_size + 2 * spec.key_value_size,
            parallel=Parallel.COLUMN,
            bias=spec.qkv_bias,
            input_name=input_name,
            whole_heads=spec.num_key_value_heads,
        )
        operators = [qkv]
        qk_size = spec.query_size + spec.key_value_size
        if spec.qk_norm:
            operators.append(self.qk_norm(spec))
        if self.model.position_embedding is PositionEmbedding.ROPE:
            rotated_bytes = round(2 * qk_size * self.model.rotary_fraction) * self.width
            operators.append(
                Operator(
                    name="rotary",
                    work=Pointwise(
                        forward_bytes_per_token=rotated_bytes,
                        backward_bytes_per_token=rotated_bytes,
                        region=Region.SHARDED,
                    ),
                )
            )
        operators.append(
            Operator(
                name="core attention",
                work=CoreAttention(
                    attention=spec,
                    dtype=self.dtype,
                    fused=self.workload.attention_kernel is not AttentionKernel.UNFUSED,
                ),
                saved=self.attention_saved(spec, heads),
                module=Module.CORE_ATTENTION,
            )
        )
        operators.append(
            self.linear(
                "proj",
                in_features=spec.query_size,
                out_features=self.hidden,
                parallel=Parallel.ROW,
                bias=spec.output_bias,
                input_name="attention output",
            )
        )
        return operators

    def attention_saved(self, spec: SelfAttention, heads: int) -> tuple[Saved, ...]:
        """Return what the attention core keeps; a fused kernel needs the output too, an unfused one the scores."""

        def head_tensor(name: str, features: int) -> Saved:
            return Saved(
                name=name,
                features=features,
                element_bytes=self.width,
                region=Region.SHARDED,
                granule=spec.head_dim,
            )

        unfused = self.workload.attention_kernel is AttentionKernel.UNFUSED
        # The unfused core copies each key/value head for each of its query heads (`repeat_interleave`).
        key_value_size = spec.query_size if unfused else spec.key_value_size
        saved = [
            head_tensor("query", spec.query_size),
            head_tensor("key", key_value_size),
            head_tensor("value", key_value_size),
        ]
        if unfused:
            row = heads * self.workload.seq_len
            saved.append(
                Saved(
                    name="softmax output",
                    features=row,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    dropped_by=Module.CORE_ATTENTION,
                )
            )
            if self.workload.attention_dropout > 0:
                saved += [
                    Saved(
                        name="attention dropout mask",
                        features=row,
                        element_bytes=1,
                        region=Region.SHARDED,
                        dropped_by=Module.CORE_ATTENTION,
                    ),
                    Saved(
                        name="attention dropout output",
                        features=row,
                        element_bytes=self.width,
                        region=Region.SHARDED,
                        dropped_by=Module.CORE_ATTENTION,
                    ),
                ]
        else:
            saved += [
                Saved(
                    name="attention output",
                    features=spec.query_size,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    granule=spec.head_dim,
                ),
                Saved(
                    name="log-sum-exp",
                    features=heads,
                    element_bytes=LOGSUMEXP_BYTES,
                    region=Region.SHARDED,
                    dropped_by=Module.CORE_ATTENTION,
                ),
            ]
        return tuple(saved)

    def qk_norm(self, spec: SelfAttention) -> Operator:
        """Return the norms over each query and key head, which keep their inputs."""
        size = spec.query_size + spec.key_value_size
        return Operator(
            name="qk norm",
            work=Pointwise(
                forward_bytes_per_token=NORM_FORWARD_PASSES * size * self.width,
                backward_bytes_per_token=NORM_BACKWARD_PASSES * size * self.width,
                region=Region.SHARDED,
                num_kernels=2,
            ),
            weights=(*self.norm_weights("query norm", spec.head_dim), *self.norm_weights("key norm", spec.head_dim)),
            saved=tuple(
                Saved(
                    name=f"{which} norm input",
                    features=features,
                    element_bytes=self.width,
                    region=Region.SHARDED,
                    granule=spec.head_dim,
                )
                for which, features in (("query", spec.query_size), ("key", spec.key_value_size))
            ),
        )

    def feed_forward(self, spec: DenseFeedForward, input_name: str) -> list[Operator]:
        """Return two projections around an activation."""
        width = spec.intermediate_size * (2 if spec.gated else 1)
        forward, backward = (
            (GATED_FORWARD_PASSES, GATED_BACKWARD_PASSES)
            if spec.gated
            else (PLAIN_FORWARD_PASSES, PLAIN_BACKWARD_PASSES)
        )
        return [
            self.linear(
                "fc1",
                in_features=self.hidden,
                out_features=width,
                parallel=Parallel.COLUMN,
                bias=spec.bias,
                input_name=input_name,
                module=Module.MLP,
                input_dropped_by=Module.MLP,
            ),
            Operator(
                name=f"gated {spec.activation}" if spec.gated else str(spec.activation),
                work=Pointwise(
                    forward_bytes_per_token=forward * spec.intermediate_size * self.width,
                    backward_bytes_per_token=backward * spec.intermediate_size * self.width,
                    region=Region.SHARDED,
                ),
                saved=(
                    Saved(
                        name="activation input",
                        features=width,
                        element_bytes=self.width,
                        region=Region.SHARDED,
                        dropped_by=Module.MLP,
                    ),
                ),
                module=Module.MLP,
            ),
            self.linear(
                "fc2",
                in_features=spec.intermediate_size,
                out_features=self.hidden,
                parallel=Parallel.ROW,
                bias=spec.bias,
                input_name="activation output",
                module=Module.MLP,
                input_dropped_by=Module.MLP,
            ),
        ]

    def block(self, block: Block) -> LayerGraph:
        """Return the graph of one decoder layer."""
        operators: list[Operator] = []
        if block.mixer is not None:
            operators.append(self.norm("attention norm"))
            operators += self.attention(block.mixer, "attention norm output")
            if not block.parallel:
                operators.append(self.residual("attention residual"))
        if block.feed_forward is not None:
            shares_norm = block.parallel and block.num_norms == 1
            if not shares_norm:
                # Megatron-LM's norm is a part of fc1, so recomputing the MLP runs it again and drops its output.
                stream = "attention norm input" if block.parallel and block.mixer is not None else ""
                operators.append(self.norm("feed-forward norm", input_name=stream, module=Module.MLP))
            source = "attention norm output" if shares_norm else "feed-forward norm output"
            operators += self.feed_forward(block.feed_forward, source)
            operators.append(self.residual("feed-forward residual"))
        return LayerGraph(name="block", operators=_share_saved(operators), layer_input=self.stream("layer input"))

    def stream(self, name: str) -> Saved:
        """Return the residual stream as a saved tensor."""
        return Saved(name=name, features=self.hidden, element_bytes=self.width, region=Region.RESIDUAL)

    def embedding(self) -> LayerGraph:
        """Return token look-up, learned positions and the norm behind them."""
        model = self.model
        weights = [
            Weight(
                name="word embedding",
                shape=(model.vocab_size, self.hidden),
                split_dim=0,
                trainable=self.base_trains,
                vocab_dim=0,
            )
        ]
        if model.position_embedding is PositionEmbedding.LEARNED:
            weights.append(
                Weight(
                    name="position embedding",
                    shape=(model.num_position_rows, self.hidden),
                    split_dim=None,
                    trainable=self.base_trains,
                )
            )
        operators = [
            Operator(
                name="word embedding",
                work=Lookup(hidden_size=self.hidden, dtype=self.dtype),
                weights=tuple(weights),
            )
        ]
        if model.embedding_norm:
            operators.append(self.norm("embedding norm"))
        if self.workload.hidden_dropout > 0:
            mask = Saved(name="embedding dropout mask", features=self.hidden, element_bytes=1, region=Region.RESIDUAL)
            passes = PLAIN_FORWARD_PASSES * self.hidden * self.width
            work = Pointwise(forward_bytes_per_token=passes, backward_bytes_per_token=passes, region=Region.RESIDUAL)
            operators.append(Operator(name="embedding dropout", work=work, saved=(mask,)))
        return LayerGraph(name="embedding", operators=tuple(operators), layer_input=None)

    def head(self) -> LayerGraph:
        """Return final norm, LM head and cross entropy; the logits are in 16 bit, the loss in 32."""
        model = self.model
        linear = Linear(
            in_features=self.hidden,
            out_features=model.vocab_size,
            parallel=Parallel.COLUMN,
            dtype=self.dtype,
            trains_weight=self.base_trains,
            vocab_output=True,
        )
        weights = [
            Weight(
                name="lm head weight",
                shape=(model.vocab_size, self.hidden),
                split_dim=0,
                trainable=self.base_trains,
                vocab_dim=0,
                shared_with_embedding=model.tie_word_embeddings,
            )
        ]
        if model.lm_head_bias:
            weights.append(
                Weight(
                    name="lm head bias",
                    shape=(model.vocab_size,),
                    split_dim=0,
                    trainable=self.base_trains,
                    vocab_dim=0,
                )
            )
        saved = (self.stream("final norm output"),) if self.base_trains else ()
        return LayerGraph(
            name="head",
            operators=(
                self.norm("final norm"),
                Operator(name="lm head", work=linear, weights=tuple(weights), saved=saved),
                Operator(name="loss reductions", work=LossReduction()),
                Operator(
                    name="cross entropy",
                    work=Pointwise(
                        forward_bytes_per_token=LOGIT_FORWARD_BYTES,
                        backward_bytes_per_token=LOGIT_BACKWARD_BYTES,
                        region=Region.SHARDED,
                        vocab_features=model.vocab_size,
                        num_kernels=6,
                    ),
                    saved=(
                        Saved(
                            name="softmax of logits",
                            features=model.vocab_size,
                            element_bytes=DType.FP32.num_bytes,
                            region=Region.SHARDED,
                        ),
                    ),
                ),
            ),
            layer_input=self.stream("layer input"),
        )


def _share_saved(operators: list[Operator]) -> tuple[Operator, ...]:
    """Return the operators with each saved tensor kept once, by the first operator that names it.

    A tensor that one operator keeps for good and another would drop is kept.
    """
    kept: dict[str, Saved] = {}
    owner: dict[str, int] = {}
    for index, operator in enumerate(operators):
        for saved in operator.saved:
            first = kept.get(saved.name)
            owner.setdefault(saved.name, index)
            if first is None or saved.dropped_by is None:
                kept[saved.name] = saved
    return tuple(
        Operator(
            name=operator.name,
            work=operator.work,
            weights=operator.weights,
            saved=tuple(kept[saved.name] for saved in operator.saved if owner[saved.name] == index),
            module=operator.module,
        )
        for index, operator in enumerate(operators)
    )


def build_graph(model: ModelSpec, workload: TrainWorkload) -> ModelGraph:
    """Return the operators of every kind of layer of `model` under `workload`."""
    builder = _BlockBuilder(model, workload)
    return ModelGraph(
        embedding=builder.embedding(),
        blocks={block: builder.block(block) for block in model.distinct_blocks},
        head=builder.head(),
        hidden_size=model.hidden_size,
        stream_bytes=builder.width,
    )


def layer_parameters(layer: LayerGraph) -> int:
    """Return the unsharded, unpadded parameters of one layer, a tied table counted with the embedding only."""
    return sum(weight.num_elements for weight in layer.weights if not weight.shared_with_embedding)


def graph_parameters(model: ModelSpec, graph: ModelGraph) -> int:
    """Return the parameters of the whole model, adapters included."""
    blocks = sum(run.count * layer_parameters(graph.blocks[run.block]) for run in model.runs)
    return layer_parameters(graph.embedding) + blocks + layer_parameters(graph.head)


def required_flops_per_sequence(model: ModelSpec, graph: ModelGraph, *, seq_len: int) -> int:
    """Return the flops that one sequence needs, forward and backward, without any recomputation.

    Products of linear layers (2 per weight and token forward, as much again for each gradient that is needed) and the
    causal half of attention: two products forward, four backward (Narayanan et al., arXiv 2104.04473, equation 3,
    with the causal half and the vocabulary as they are). This is the numerator of MFU.
    """
    total = _layer_flops(graph.head, seq_len)
    for run in model.runs:
        total += run.count * _layer_flops(graph.blocks[run.block], seq_len)
    return total


def _layer_flops(layer: LayerGraph, seq_len: int) -> int:
    total = 0
    for operator in layer.operators:
        work = operator.work
        if isinstance(work, Linear):
            gradients = 1 + work.needs_input_gradient + work.trains_weight
            total += 2 * seq_len * work.in_features * work.out_features * gradients
            total += 6 * seq_len * work.adapter_rank * (work.in_features + work.out_features)
        elif isinstance(work, CoreAttention):
            pairs = seq_len * (seq_len + 1) // 2
            total += 6 * 2 * pairs * work.attention.query_size
    return total
