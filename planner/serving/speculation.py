"""Speculative decoding: a small model guesses tokens ahead, and the model checks them in one step.

With g guesses, each taken with probability a where those before it were, a step gives

    1 + a + a^2 + ... + a^g = (1 - a^(g + 1)) / (1 - a)

tokens in the mean (Leviathan and others, arXiv 2211.17192, equation 1). What is sampled is distributed as without
guesses. vLLM 0.32.0 runs the draft on the GPUs of the engine, with the engine's tensor-parallel degree
(`vllm/v1/spec_decode/draft_model.py: _raise_if_draft_tp_mismatch`), whole on each data-parallel rank; a draft's routed
experts lie over all ranks, as those of the engine do. Of a split plan prefill engines have the draft too: it takes in
the prompts there, and its caches are passed on with the model's.
"""

GUESSES = (1, 2, 3, 4, 5, 6, 8)
"""Numbers of guesses that are tried."""


def tokens_per_step(guesses: int, acceptance: float) -> float:
    """Return the tokens that an answer gets from a step in the mean.

    Args:
        guesses: Tokens that are guessed.
        acceptance: Probability that a guess is taken where those before it were.
    """
    return sum(acceptance**power for power in range(guesses + 1))
