"""Megatron-LM's rules beside their first cases: other ways to break them, and what comes near and breaks nothing."""

import pytest

from planner.rules.conditions import on
from planner.validation.source import Asked
from planner.validation.sources import read_source
from tests.unit.rules.megatron_cases import EXPERTS, HYBRID, RL, having, script
from tests.unit.rules.test_megatron_rules import judged

OLD = "0.17.1"
"""The last version whose batch grows by `--rampup-batch-size`."""

IN_SAMPLES = "--train-samples 10000"
MAMBA = "--squared-relu --disable-bias-linear --hybrid-layer-pattern 'M*|M-'"
DELTA_NET = "--experimental-attention-variant gated_delta_net --linear-attention-freq 4"
MODULES = "--position-embedding-type rope --mtp-num-layers"
WHOLE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers"
GROUPS = "--moe-router-group-topk 1 --moe-router-num-groups"
SPLIT = "--per-split-data-args-path split.json"

BROKEN: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "a batch for less than all replicas": (
        having("--decrease-batch-size-if-needed --global-batch-size 2"),
        OLD,
        ("MLM801: A global batch of 2 is not a multiple of micro-batch 1 x dp 4 = 4.",),
    ),
    "an evaluation's batch that replicas do not divide": (
        having("--eval-global-batch-size 62"),
        None,
        ("MLM801: The evaluation's global batch of 62 is not a multiple of its micro-batch x dp = 4.",),
    ),
    "an evaluation without a micro-batch": (
        having("--eval-micro-batch-size 0"),
        None,
        ("MLM801: The evaluation's global batch of 64 is not a multiple of its micro-batch x dp = 0.",),
    ),
    "a length in samples and a warm-up in iterations": (
        having(f"{IN_SAMPLES} --lr-warmup-iters 3", "--train-iters"),
        None,
        ("MLM804: --lr-warmup-iters with --train-samples.",),
    ),
    "a warm-up said twice": (
        having("--lr-warmup-fraction 0.1 --lr-warmup-iters 3"),
        None,
        ("MLM804: --lr-warmup-fraction and --lr-warmup-iters say the same thing.",),
    ),
    "a first batch that is no number": (
        having("--step-batch-size-schedule '0:64 xB:128'", "--global-batch-size"),
        None,
        ("MLM814: `xB:128` is no THRESHOLD:BATCH.",),
    ),
    "a step without a batch": (
        having("--step-batch-size-schedule '0:64 250B'", "--global-batch-size"),
        None,
        ("MLM814: `250B` is no THRESHOLD:BATCH.",),
    ),
    "a threshold that is not finite": (
        having("--step-batch-size-schedule '0:64 1e400:128'", "--global-batch-size"),
        None,
        ("MLM814: `1e400:128` is no THRESHOLD:BATCH.",),
    ),
    "a schedule that starts late": (
        having("--step-batch-size-schedule '1K:64 2K:128'", "--global-batch-size"),
        None,
        ("MLM814: The schedule does not start at 0 and rise, with a batch of at least 1.",),
    ),
    "no learning rate": (script("--lr"), None, ("MLM807: --lr is missing.",)),
    "a least rate below 0": (
        script().replace("--lr 3e-4", "--lr 3e-4 --min-lr=-1"),
        None,
        ("MLM807: --min-lr is -1.",),
    ),
    "a warm-up from above": (
        having("--lr-warmup-init 1e-3"),
        None,
        ("MLM807: The warm-up starts at 0.001, above 0.0003.",),
    ),
    "a last decay of no length": (
        having("--lr-decay-style WSD"),
        None,
        ("MLM807: --lr-decay-style WSD needs --lr-wsd-decay-iters.",),
    ),
    "a ramp in a run said in iterations": (
        having("--rampup-batch-size 16 16 1000"),
        OLD,
        ("MLM833: --rampup-batch-size with --train-iters.",),
    ),
    "a ramp from 0": (
        having(f"--rampup-batch-size 0 16 1000 {IN_SAMPLES}", "--train-iters"),
        OLD,
        ("MLM833: 0 16 1000 is no ramp.",),
    ),
    "a ramp that does not lead to the batch": (
        having(f"--rampup-batch-size 16 20 1000 {IN_SAMPLES}", "--train-iters"),
        OLD,
        ("MLM833: Steps of 20 do not lead from 16 to the global batch of 64.",),
    ),
    "more groups than there are": (
        having(f"{EXPERTS} --moe-router-group-topk 5 --moe-router-num-groups 4"),
        None,
        ("MLM303: 5 of 4 groups are chosen.",),
    ),
    "attention of two kinds": (
        having(f"{HYBRID} --hybrid-layer-pattern 'M*D-|M*+-'", "--num-layers"),
        None,
        ("MLM220: The pattern mixes attention (*) with latent or sparse attention (+, D).",),
    ),
    "prediction modules that differ": (
        having(f"{HYBRID} --hybrid-layer-pattern 'M*|M-/M*/MM'", "--num-layers"),
        None,
        ("MLM220: The prediction modules differ.",),
    ),
    "a head that does not divide Mamba's width": (
        having(f"{MAMBA} --mamba-head-dim 63", "--num-layers"),
        None,
        ("MLM224: --mamba-head-dim 63 does not divide twice the hidden size 4096.",),
    ),
    "Mamba heads and groups that tp does not divide": (
        having(f"{MAMBA} --mamba-num-heads 65 --mamba-num-groups 5", "--num-layers"),
        None,
        ("MLM224: tp 2 does not divide 65 Mamba heads.", "MLM224: tp 2 does not divide 5 Mamba groups."),
    ),
    "experts in no layer": (
        having(f"{EXPERTS} --moe-layer-freq 0"),
        None,
        ("MLM225: --moe-layer-freq is 0.",),
    ),
    "positions left out at a distance that does not divide the layers": (
        having("--no-rope-freq 5"),
        None,
        ("MLM225: --no-rope-freq 5 does not divide 32 layers.",),
    ),
    "no tokenizer and no vocabulary": (
        script("--tokenizer-type", "--vocab-size"),
        None,
        ("MLM109: --vocab-size is missing.",),
    ),
    "a tokenizer that knows no vocabulary": (script("--vocab-size"), None, ("MLM109: --vocab-size is missing.",)),
    "no layers and no length": (
        script("--num-layers", "--seq-length"),
        None,
        ("MLM109: --num-layers, --seq-length are missing.",),
    ),
    "virtual stages that do not divide what a rank has": (
        having(
            "--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 5 "
            "--decoder-last-pipeline-num-layers 5 --num-virtual-stages-per-pipeline-rank 2"
        ),
        None,
        ("MLM204: 2 virtual stages do not divide the layers of every rank: 5, 5 or 11.",),
    ),
    "a layout in other letters": (
        having("--pipeline-model-parallel-layout 'Et*16|x*16L'"),
        None,
        ("MLM205: The layout has `x`.",),
    ),
    "groups of micro-batches below pp": (
        having("--num-layers-per-virtual-pipeline-stage 4 --microbatch-group-size-per-virtual-pipeline-stage 1"),
        None,
        ("MLM210: Groups of 1 micro-batches are smaller than pp 2.",),
    ),
    "fewer micro-batches than a group": (
        having("--num-layers-per-virtual-pipeline-stage 4 --microbatch-group-size-per-virtual-pipeline-stage 32"),
        None,
        ("MLM210: 16 micro-batches of a replica are fewer than a group of 32.",),
    ),
    "no virtual stage": (
        having("--num-virtual-stages-per-pipeline-rank 0"),
        None,
        ("MLM203: A rank has no virtual stage.",),
    ),
    "a first rank without a layer": (
        having("--pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 0"),
        None,
        ("MLM204: The first rank has 0 layers.",),
    ),
    "two embeddings": (
        having("--pipeline-model-parallel-layout 'Et*16E|t*16L'"),
        None,
        ("MLM206: The layout does not begin with its only `E` and end with its only `L`.",),
    ),
    "a layer behind a prediction module": (
        having(f"{MODULES} 1 --pipeline-model-parallel-layout 'Et*16|mt*16L'"),
        None,
        ("MLM207: A layer stands behind a prediction module.",),
    ),
    "a prediction module in a first virtual stage": (
        having(f"{MODULES} 1 --pipeline-model-parallel-layout 'Et*16|t*16m||L'"),
        None,
        ("MLM207: A prediction module stands before the last virtual stage of its rank.",),
    ),
    "prediction modules apart": (
        having(f"{MODULES} 2 --pipeline-model-parallel-layout 'Et*8|t*8|t*16m|mL'"),
        None,
        ("MLM207: Prediction modules stand in several stages.",),
    ),
    "more layers recomputed than a hybrid's stage has": (
        having(f"{HYBRID} {WHOLE} 5 --hybrid-layer-pattern 'M*|M-'", "--num-layers"),
        None,
        ("MLM601: 5 layers are to be recomputed, a stage has 2.",),
    ),
    "more layers recomputed than a layout's largest stage has": (
        having(f"{WHOLE} 18 --pipeline-model-parallel-layout 'Et*17|t*15L'"),
        None,
        ("MLM601: 18 layers are to be recomputed, a stage has 17.",),
    ),
    "an interval within a generation": (
        having(f"{RL} --exit-interval 3"),
        None,
        ("MLM832: --exit-interval 3 is not a multiple of the 4 batches of a generation.",),
    ),
    "heads of latent attention over contexts": (
        having(
            "--multi-latent-attention --context-parallel-size 4 --cp-comm-type a2a --num-attention-heads 28 "
            "--kv-channels 128"
        ),
        None,
        ("MLM406: An all-to-all over 4 ranks does not divide the 14 heads of a tensor-parallel rank.",),
    ),
    "nothing is saved at an interval": (
        having("--save out --save-interval 0"),
        None,
        ("MLM808: --save-interval is 0.",),
    ),
    "data by path and by a file of paths": (
        having("--data-path a --data-args-path b", "--mock-data"),
        None,
        ("MLM810: --data-path, --data-args-path all say where data is.",),
    ),
    "data of a split by path and by a file of paths": (
        having(f"--train-data-path a {SPLIT}", "--mock-data"),
        None,
        ("MLM810: --train-data-path, --per-split-data-args-path all say where data is.",),
    ),
}
"""A script, the version that it is judged for, and all that is found in it: rule and message."""


@pytest.mark.parametrize("name", BROKEN)
def test_another_way_to_break_a_rule(name: str) -> None:
    text, version, expected = BROKEN[name]
    found = judged(text, version=version).findings
    assert sorted(f"{one.rule_id}: {one.found.message}" for one in found if one.rule_id != "S009") == sorted(expected)


BELOW_ZERO: dict[str, tuple[str, str]] = {
    "MLM303: 2 groups do not divide -3 experts.": (
        having(f"--num-experts -3 {GROUPS} 2"),
        "no number groups would do.",
    ),
    "MLM224: tp 2 does not divide -65 Mamba heads.": (
        having(f"{MAMBA} --mamba-num-heads -65", "--num-layers"),
        "2 heads would do.",
    ),
    "MLM226: 16 key heads do not divide -5 value heads.": (
        having(f"{DELTA_NET} --linear-num-value-heads -5"),
        "16 value heads would do.",
    ),
    "MLM226: 2 ranks (tp x cp) do not divide -5 heads (--linear-num-value-heads).": (
        having(f"{DELTA_NET} --linear-num-value-heads -5"),
        "2 would do.",
    ),
    "MLM108: tp 2 does not divide the padded vocabulary of -5.": (script(padded_vocab_size="-5"), "2 would do."),
    "MLM808: --save-retain-interval -7 is not a multiple of --save-interval 2.": (
        having("--save out --save-interval 2 --save-retain-interval -7"),
        "2 would do.",
    ),
}
"""What is found in a script whose number is below 0, and what is proposed."""


@pytest.mark.parametrize("finding", BELOW_ZERO)
def test_a_number_below_zero_is_told_with_numbers_that_fit(finding: str) -> None:
    text, hint = BELOW_ZERO[finding]
    found = {f"{one.rule_id}: {one.found.message}": one.found.hint for one in judged(text).findings}
    assert found[finding] == hint


SILENT: dict[str, tuple[str, str | None]] = {
    "a batch that is rounded down": (having("--decrease-batch-size-if-needed --global-batch-size 62"), OLD),
    "a schedule with a suffix": (having("--step-batch-size-schedule '0:64 250K:128'", "--global-batch-size"), None),
    "nothing is trained, and no length said": (having("--skip-train", "--train-iters"), None),
    "nothing is trained, and no rate given": (having("--skip-train", "--lr"), None),
    "a last decay of some length": (having("--lr-decay-style WSD --lr-wsd-decay-iters 10"), None),
    "a ramp to the batch": (having(f"--rampup-batch-size 16 16 1000 {IN_SAMPLES}", "--train-iters"), OLD),
    "a hybrid whose ends have all layers": (
        having(
            f"{HYBRID} --hybrid-layer-pattern 'M*M-' --decoder-first-pipeline-num-layers 1 "
            "--decoder-last-pipeline-num-layers 3",
            "--num-layers",
        ),
        None,
    ),
    "heads that follow from Mamba's width": (having(f"{MAMBA} --mamba-head-dim 64", "--num-layers"), None),
    "a tokenizer that knows its vocabulary": (
        having("--tokenizer-model t.model", "--tokenizer-type", "--vocab-size"),
        None,
    ),
    "as many layers recomputed as a stage has": (having(f"{WHOLE} 16"), None),
    "layers recomputed of ranks that differ": (
        having(f"{WHOLE} 50 --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 8"),
        None,
    ),
    "generations in whole intervals": (having(f"{RL} --exit-interval 8 --save-interval 4"), None),
}
"""What comes near to breaking a rule, and the version that it is judged for."""


@pytest.mark.parametrize("name", SILENT)
def test_what_comes_near_breaks_nothing(name: str) -> None:
    text, version = SILENT[name]
    found = judged(text, version=version)
    assert ([one for one in found.findings if one.rule_id != "S009"], found.undecided) == ([], ())


@pytest.mark.parametrize("elsewhere", ["--yaml-cfg run.yaml", "--use-checkpoint-args --load out"])
def test_a_size_that_is_said_elsewhere_is_not_missing(elsewhere: str) -> None:
    found = judged(having(elsewhere, "--hidden-size"))
    assert found.findings == ()
    assert {one.what for one in found.undecided} == {"hidden_size"}


def test_groups_of_no_mamba_layer_and_batches_of_none_are_left_to_other_rules() -> None:
    assert judged(having(f"{MAMBA} --mamba-num-groups 0", "--num-layers")).findings == ()
    found = judged(having("--perform-rl-step --global-batch-size 0")).findings
    assert [one.rule_id for one in found] == ["MLM801"]


@pytest.mark.parametrize(("number", "found"), [("$STAGES", []), ("0", ["MLM203"]), ("-1", ["MLM203"])])
def test_recomputed_layers_are_not_decided_where_virtual_stages_are_not_told(number: str, found: list[str]) -> None:
    result = judged(having(f"{WHOLE} 50 --num-virtual-stages-per-pipeline-rank {number}"))
    assert [one.rule_id for one in result.findings] == found
    assert "MLM601" in {one.rule_id for one in result.undecided}


@pytest.mark.parametrize(
    ("batch", "new"),
    [("--global-batch-size 63", "64"), ("--global-batch-size 62", None), ("--global-batch-size=63", None)],
)
def test_a_change_is_proposed_where_one_number_is_nearest_and_stands_alone(batch: str, new: str | None) -> None:
    (finding,) = judged(script().replace("--global-batch-size 64", batch)).findings
    assert (finding.found.fix and finding.found.fix.new) == new


def test_a_switch_that_is_off_is_switched_on_where_it_stands() -> None:
    (finding,) = judged(having(f"{RL} --rl-generation-lag 2 --no-rl-partial-rollouts")).findings
    assert finding.rule_id == "MLM829"
    assert finding.found.fix is not None
    assert (finding.found.fix.old, finding.found.fix.new) == ("--no-rl-partial-rollouts", "--rl-partial-rollouts")


def test_what_has_no_flag_of_its_own_is_not_written_in_the_place_of_another() -> None:
    (finding,) = judged(having("--defer-embedding-wgrad-compute --no-gradient-accumulation-fusion")).findings
    needed = "gradient accumulation fusion (without --no-gradient-accumulation-fusion)"
    assert finding.found.message == f"--defer-embedding-wgrad-compute needs {needed}."
    assert finding.found.fix is None


def test_a_switch_is_given_in_front_of_the_first_flag_that_is_there() -> None:
    (run,) = read_source(script("--sequence-parallel"), file="train.sh", asked=Asked(versions={})).runs
    parallel = on("--sequence-parallel")
    fix = parallel.fix(run, beside=("seed", "num_layers", "hidden_size"))  # type: ignore[arg-type]  # a run of Megatron
    assert fix is not None
    assert (fix.old, fix.new) == ("--num-layers", "--sequence-parallel --num-layers")
    assert parallel.fix(run, beside=("seed",)) is None  # type: ignore[arg-type]
    assert on("--no-such-flag").fix(run, beside=("num_layers",)) is None  # type: ignore[arg-type]
