"""GPT models as the Megatron papers count them: multi-head attention, a 4h GELU feed-forward, every bias."""

from planner.models.blocks import Activation, Block, DenseFeedForward, Norm, PositionEmbedding, SelfAttention
from planner.models.specs import BlockRun, ModelSpec
from planner.requests.workload import AttentionKernel, Precision, TrainWorkload


def gpt(*, hidden: int, heads: int, layers: int, vocab: int = 51200, seq_len: int = 2048) -> ModelSpec:
    """Return a GPT of the papers."""
    block = Block(
        mixer=SelfAttention(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            qkv_bias=True,
            output_bias=True,
        ),
        feed_forward=DenseFeedForward(intermediate_size=4 * hidden, gated=False, activation=Activation.GELU, bias=True),
    )
    return ModelSpec(
        name="gpt",
        architecture="inline",
        hidden_size=hidden,
        vocab_size=vocab,
        tie_word_embeddings=True,
        max_position_embeddings=seq_len,
        norm=Norm.LAYER,
        position_embedding=PositionEmbedding.LEARNED,
        runs=(BlockRun(block=block, count=layers),),
        norm_epsilon=1e-5,
    )


def unfused_run(*, batch: int, seq_len: int = 2048, dropout: float = 0.1) -> TrainWorkload:
    """Return a run in 16 bit that writes its score matrix, as the papers' code did."""
    return TrainWorkload(
        seq_len=seq_len,
        global_batch_size=batch,
        precision=Precision.FP16,
        attention_kernel=AttentionKernel.UNFUSED,
        hidden_dropout=dropout,
        attention_dropout=dropout,
    )
