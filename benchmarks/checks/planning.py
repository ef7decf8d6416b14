"""Checks of training plans: the README's own commands, plans of known runs, what does not fit, what is no spec."""

from dataclasses import dataclass

from benchmarks.checks.check import Answer, Check, Command, Measure, Need, Suite, seconds_at_most
from benchmarks.checks.targets import above, at_most, between, exactly

MOST_SECONDS = 10.0
LEAST_MFU, MOST_MFU = 0.30, 0.60
"""In bf16 on A100 and H100 (and H800, which computes alike) with NVLink."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run that is planned.

    Args:
        name: Its own.
        about: What it is.
        spec: Relative to the repository.
        sets: What is changed in it.
        has_mfu_range: Its MFU must lie in the range.
    """

    name: str
    about: str
    spec: str
    sets: tuple[str, ...] = ()
    has_mfu_range: bool = True


def example(name: str) -> str:
    """Return the spec of an example."""
    return f"examples/{name}/spec.yaml"


H100 = example("llama-3.1-70b-8xdgx-h100")
LARGE = example("llama-3.1-405b-128xdgx-h100")
EXPERTS = example("qwen3-235b-a22b-32xdgx-h100")

DENSE = (
    Case(name="8b-on-8-h100", about="Llama-3.1-8B on 8 H100, batch 128", spec=example("llama-3.1-8b-1xdgx-h100")),
    Case(
        name="70b-on-64-h100",
        about="Llama-3.1-70B on 64 H100, batch 512, sequence 4096",
        spec=H100,
        sets=("workload.seq_len=4096",),
    ),
    Case(
        name="70b-on-64-a100",
        about="Llama-3.1-70B on 64 A100-80, batch 512, sequence 4096",
        spec=example("llama-3.1-70b-8xdgx-a100"),
    ),
    Case(name="405b-on-1024-h100", about="Llama-3.1-405B on 1,024 H100, batch 512", spec=LARGE),
    Case(
        name="405b-on-16384-h100",
        about="Llama-3.1-405B on 16,384 H100, batch 2,048",
        spec=LARGE,
        sets=("cluster.nodes=2048", "workload.global_batch_size=2048"),
    ),
    Case(
        name="7b-on-4-l40s",
        about="a 7B on 4 L40S without NVLink",
        spec=example("llama-2-7b-4xl40s"),
        has_mfu_range=False,
    ),
    Case(name="lora-70b-on-8-h100", about="LoRA of 70B on 8 H100", spec=example("llama-3.1-70b-lora-1xdgx-h100")),
)

OTHERS = (
    Case(
        name="mixtral-8x22b-on-64-h100",
        about="Mixtral-8x22B on 64 H100, batch 512, sequence 4096",
        spec=example("mixtral-8x22b-8xdgx-h100"),
    ),
    Case(name="qwen3-235b-on-256-h100", about="Qwen3-235B-A22B on 256 H100", spec=EXPERTS),
    Case(
        name="gpt-oss-120b-on-64-h100",
        about="gpt-oss-120b on 64 H100",
        spec=EXPERTS,
        sets=("model=gpt-oss-120b", "cluster.nodes=8", "workload.global_batch_size=512"),
    ),
    Case(
        name="deepseek-v3-on-2048-h800",
        about="DeepSeek-V3 on 2,048 H800",
        spec=EXPERTS,
        sets=(
            "model=deepseek-v3",
            "cluster.preset=h800-8",
            "cluster.nodes=256",
            "workload.global_batch_size=15360",
        ),
    ),
    Case(
        name="kimi-k2-on-2304-gb200",
        about="Kimi-K2 on 2,304 GB200 GPUs",
        spec=EXPERTS,
        sets=(
            "model=kimi-k2",
            "cluster.preset=gb200-nvl72",
            "cluster.nodes=576",
            "workload.global_batch_size=4608",
        ),
        has_mfu_range=False,
    ),
    Case(
        name="nemotron-h-56b-on-256-h100",
        about="Nemotron-H-56B on 256 H100",
        spec=example("nemotron-h-56b-32xdgx-h100"),
    ),
    Case(
        name="8b-million-tokens-on-64-h100",
        about="Llama-3.1-8B with 1M tokens on 64 H100",
        spec=example("llama-3.1-8b-1m-tokens-8xdgx-h100"),
    ),
    Case(
        name="405b-131072-tokens-on-16384-h100",
        about="Llama-3.1-405B with 131,072 tokens on 16,384 H100",
        spec=LARGE,
        sets=("cluster.nodes=2048", "workload.seq_len=131072", "workload.global_batch_size=128"),
    ),
)


def tp_of_domain(answer: Answer) -> float:
    """Return tp over the GPUs that NVLink joins; 1 GPU without NVLink."""
    levels = answer.document["inputs"]["cluster"]["levels"]
    joined = max((level["num_gpus"] for level in levels if level["kind"] == "peer"), default=1)
    return float(answer.document["plans"][0]["layout"]["tp"] / joined)


def peak_of_limit(answer: Answer) -> float:
    """Return the heaviest GPU's peak over what may be used, the headroom off."""
    best = answer.document["plans"][0]
    return float(best["peak_memory_bytes"] / best["memory_limit_bytes"])


def words_of(spec: str, sets: tuple[str, ...]) -> tuple[str, ...]:
    """Return the command that plans a spec with changes."""
    changes = (word for change in sets for word in ("--set", change))
    return ("-m", "cli.start", "plan", spec, *changes, "--format", "json")


def plan_of(case: Case) -> Check:
    """Return the check of one plan."""
    mfu = Measure(
        name="MFU",
        target=between(LEAST_MFU, MOST_MFU),
        read=lambda answer: float(answer.document["plans"][0]["mfu"]),
    )
    return Check(
        area="planning",
        name=case.name,
        about=f"{case.about}: planned in time, and sanely",
        run=Command(
            words=words_of(case.spec, case.sets),
            measures=(
                seconds_at_most(MOST_SECONDS),
                Measure(name="tp over the NVLink domain", target=at_most(1), read=tp_of_domain),
                Measure(name="peak over the usable memory", target=at_most(1), read=peak_of_limit),
                *((mfu,) if case.has_mfu_range else ()),
            ),
        ),
    )


def fresh(name: str, about: str, command: str) -> Check:
    """Return the check of a command of the README in a copy of its own."""
    done = Measure(name="exit code", target=exactly(0), read=lambda answer: answer.exit_code)
    return Check(
        area="planning",
        name=name,
        about=about,
        run=Command(
            words=("-m", "benchmarks.checks.fresh_copy", command),
            measures=(done,),
            needs=(Need.GIT,),
        ),
    )


CHECKS = (
    fresh("readme-plan", "the README's first command sets up and plans 70B on 8 DGX-H100, in a copy", "plan-command"),
    fresh("readme-tests", "the README's other command sets up and passes the tests, in a copy", "test-command"),
    *(plan_of(case) for case in DENSE),
    *(plan_of(case) for case in OTHERS),
    Check(
        area="planning",
        name="405b-on-8-gpus",
        about="405B does not fit on 8 GPUs: exit code 3 with the shortfall",
        run=Command(
            words=words_of(LARGE, ("cluster.nodes=1",)),
            exits=(0, 3),
            measures=(
                Measure(name="exit code", target=exactly(3), read=lambda answer: answer.exit_code),
                Measure(
                    name="shortfall",
                    target=above(0, "GiB"),
                    read=lambda answer: float(answer.document["infeasible"]["shortfall_bytes"] / (1 << 30)),
                ),
            ),
        ),
    ),
    Check(
        area="planning",
        name="mutated-specs",
        about="whatever stands in a field of a spec, it is planned or refused in words, and nothing hangs",
        run=Suite(nodes=("tests/laws/test_input_fuzz.py", "tests/laws/test_plan_fuzz.py")),
    ),
    Check(
        area="planning",
        name="unseen-configs",
        about="configurations of architectures never seen are read right, or refused by the name of the field",
        run=Suite(
            nodes=(
                "tests/unit/planner/test_published_configs.py",
                "tests/unit/planner/test_model_huggingface.py",
                "tests/unit/planner/test_model_mutations.py",
            )
        ),
    ),
    Check(
        area="planning",
        name="megatron-takes-dense",
        about="Megatron-LM's validation and a meta-device build take every emitted list; ranks hold what is counted",
        run=Suite(
            nodes=("tests/frameworks/test_examples.py", "tests/frameworks/test_megatron.py"), marker="frameworks"
        ),
    ),
    Check(
        area="planning",
        name="megatron-takes-other-models",
        about="the same of experts, latent attention, hybrids, context parallelism and adapters",
        run=Suite(
            nodes=("tests/frameworks/test_megatron_models.py", "tests/frameworks/test_megatron_adapters.py"),
            marker="frameworks",
        ),
    ),
    Check(
        area="planning",
        name="deepspeed-takes-and-steps",
        about="DeepSpeedConfig takes every emitted JSON, and toy models take real steps of two processes with them",
        run=Suite(nodes=("tests/frameworks/test_deepspeed.py",), marker="frameworks"),
    ),
)
