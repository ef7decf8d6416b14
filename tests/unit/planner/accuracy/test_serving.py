"""Rows of serving runs, made up: what they describe, what is predicted, what is left out, how it is scored."""

from dataclasses import replace

import pytest

from planner.accuracy.measurements import Row
from planner.accuracy.serving import ServingPrediction, ServingPredictor
from planner.accuracy.serving_exclusions import exclusions, sort_rows
from planner.accuracy.serving_fit import ENGINE_PRIORS, KERNEL_PRIORS, ServingFit, group_of
from planner.accuracy.serving_scores import Metric, metric_errors, ranking_of, sets_of
from planner.serving.engines import calibration
from tests.unit.planner.accuracy.rows import SERVING_CELLS


def _row(**changes: str) -> Row:
    return Row(id=changes.get("id", SERVING_CELLS["id"]), line=2, cells={**SERVING_CELLS, **changes})


def _predicted(**changes: str) -> ServingPrediction:
    return ServingPredictor().predict(_row(**changes))


def test_a_steady_row_has_every_figure() -> None:
    found = _predicted()
    assert found.error is None
    assert found.fits
    assert found.tpot_seconds is not None
    assert found.ttft_seconds is not None
    assert 2e-3 < found.tpot_seconds < 20e-3
    assert found.tpot_seconds < found.ttft_seconds
    assert found.total_tokens_per_second_per_gpu is not None
    assert found.output_tokens_per_second_per_gpu is not None
    ratio = found.total_tokens_per_second_per_gpu / found.output_tokens_per_second_per_gpu
    assert ratio == pytest.approx(1 + 1024 / 128, rel=0.02)


def test_throughput_follows_littles_law() -> None:
    found = _predicted()
    assert found.tpot_seconds is not None
    assert found.ttft_seconds is not None
    life = found.ttft_seconds + 127 * found.tpot_seconds
    assert found.output_tokens_per_second_per_gpu == pytest.approx(8 * 128 / life, rel=0.12)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "nobody/knows"}, "model 'nobody/knows' is not bundled"),
        ({"engine": "unheard"}, "engine 'unheard' is not known."),
        ({"quant": "fp7"}, "quantisation 'fp7' is not known."),
        ({"hardware": "abacus"}, "hardware 'abacus' is no GPU of the catalogue"),
        ({"isl": ""}, "isl is empty"),
        ({"concurrency_or_batch": ""}, "concurrency_or_batch is empty"),
        ({"mode": "MLPerf Server"}, "mode = 'MLPerf Server' says neither layout nor lengths that can be priced"),
        ({"tp": "x"}, "tp = 'x' is no number"),
        ({"ttft_ms": "soon"}, "ttft_ms = 'soon' is no number"),
        ({"total_tokens_per_s_per_gpu": "-1"}, "total_tokens_per_s_per_gpu = '-1' is no finite number from 0 on"),
    ],
)
def test_what_a_row_lacks_is_said(changes: dict[str, str], error: str) -> None:
    assert _predicted(**changes).error == error


def test_what_does_not_fit_is_said_and_not_timed() -> None:
    found = _predicted(model="meta-llama/Llama-3.1-70B", quant="")
    assert (found.fits, found.tpot_seconds, found.error) == (False, None, None)


def test_assumptions_are_named() -> None:
    run = _predicted(quant="").run
    assert run is not None
    assert "quantisation: as the weights are published" in run.assumed
    scenario = _predicted(isl="1024", osl="1024").run
    assert scenario is not None
    assert "lengths: even between 0.8 of those in the row and those (InferenceX)" in scenario.assumed


def test_a_static_batch_is_one_wave() -> None:
    found = _predicted(mode="static batch", concurrency_or_batch="64")
    assert found.tpot_seconds is not None
    assert found.ttft_seconds is not None
    life = found.ttft_seconds + 127 * found.tpot_seconds
    assert found.output_tokens_per_second_per_gpu == pytest.approx(64 * 128 / life, rel=1e-6)


def test_an_offline_run_answers_more_than_a_few_requests() -> None:
    offline = _predicted(mode="agg offline max-throughput", concurrency_or_batch="")
    steady = _predicted()
    assert offline.output_tokens_per_second_per_gpu is not None
    assert steady.output_tokens_per_second_per_gpu is not None
    assert offline.output_tokens_per_second_per_gpu > 2 * steady.output_tokens_per_second_per_gpu


def test_data_parallel_ranks_share_the_load() -> None:
    one, four = _predicted(concurrency_or_batch="8"), _predicted(dp="4.0", num_gpus="4", concurrency_or_batch="32")
    assert four.tpot_seconds == pytest.approx(one.tpot_seconds)
    assert four.output_tokens_per_second_per_gpu == pytest.approx(one.output_tokens_per_second_per_gpu)


def test_each_exclusion_takes_its_rows_and_no_other() -> None:
    speculative = _row(
        id="A", model="deepseek-ai/DeepSeek-R1", engine="trtllm", engine_version="1.1.0rc2.post2", hardware="h200_sxm"
    )
    kept = _row(**{**speculative.cells, "id": "S02951"})
    faulty, late = _row(id="S00890"), _row(id="B", ttft_ms="6000", concurrency_or_batch="64")
    plain, repeated = _row(id="C"), _row(id="D")
    sorting = sort_rows([speculative, kept, faulty, late, plain, repeated])
    assert sorting.speculative == {"A"}
    assert sorting.clean == {"S02951", "B", "C"}
    assert sorting.no_first_token == {"B"}
    assert sorting.duplicates == 1, "D repeats C; neither is held against rows that are left out"
    assert sorting.taken["speculative decoding"] == 1
    assert all(rule.reason for rule in exclusions())


def test_a_figure_that_is_no_number_is_none_and_takes_no_row_out() -> None:
    row = _row(id="A", ttft_ms="soon", tpot_ms="nan", concurrency_or_batch="64")
    sorting = sort_rows([row])
    assert sorting.clean == {"A"}
    assert not sorting.no_first_token
    found = _predicted(ttft_ms="soon")
    assert (found.measured_ttft_seconds, found.ttft_seconds) == (None, None)


def _told(gpus: int, *, predicted: float, measured: float) -> ServingPrediction:
    """Return a made-up prediction of a layout's time per token, in milliseconds."""
    found = _predicted(tp=str(gpus), num_gpus=str(gpus), tpot_ms=str(measured), ttft_ms="0.001", id=f"T-{gpus}")
    return replace(found, tpot_seconds=predicted / 1e3, ttft_seconds=1e-6)


def test_pairs_are_ordered_and_counting_gpus_is_the_baseline() -> None:
    right = ranking_of([_told(1, predicted=9, measured=10), _told(2, predicted=5, measured=6)])
    assert (right.unequal_tpot.pairs, right.unequal_tpot.right, right.unequal_tpot.by_gpus) == (1, 1.0, 1.0)
    wrong = ranking_of([_told(1, predicted=9, measured=5), _told(2, predicted=5, measured=6)])
    assert (wrong.unequal_tpot.right, wrong.unequal_tpot.by_gpus) == (0.0, 0.0)
    assert wrong.regret == pytest.approx(0.0), "one GPU is predicted and measured best for each GPU"


def test_pairs_within_the_noise_do_not_count() -> None:
    found = ranking_of([_told(1, predicted=9, measured=10.0), _told(2, predicted=5, measured=9.7)])
    assert found.unequal_tpot.pairs == 0
    assert found.unequal_tpot.right is None


def _first(gpus: int, *, predicted: float, measured: float) -> ServingPrediction:
    """Return a made-up prediction of a layout's time to the first token, in milliseconds."""
    found = _predicted(tp=str(gpus), num_gpus=str(gpus), tpot_ms="8", ttft_ms=str(measured), id=f"T-{gpus}")
    return replace(found, tpot_seconds=8e-3, ttft_seconds=predicted / 1e3)


def test_first_tokens_are_ordered_beyond_a_noise_of_their_own() -> None:
    pair = [_first(1, predicted=90, measured=100), _first(2, predicted=50, measured=87)]
    order = ranking_of(pair).unequal_ttft
    assert (order.pairs, order.right, order.by_gpus) == (1, 1.0, 1.0)
    # 12 % apart is noise of a first token, though it would not be of the time between tokens.
    near = ranking_of([pair[0], _first(2, predicted=50, measured=90)])
    assert near.unequal_ttft.pairs == 0
    assert ranking_of(pair, no_first_token=frozenset({"T-2"})).unequal_ttft.pairs == 0
    assert ranking_of([_told(1, predicted=9, measured=100), _told(2, predicted=5, measured=90)]).unequal_tpot.pairs == 1


def test_regret_is_what_the_choice_loses() -> None:
    # Predicted best for each GPU: two GPUs at 1 ms. Measured: 4 ms, while one GPU has 4 ms too, twice as good.
    found = ranking_of([_told(1, predicted=4, measured=4), _told(2, predicted=1, measured=4)])
    assert found.groups == 1
    assert found.regret == pytest.approx(1.0, rel=1e-3)


def test_sources_can_weigh_alike() -> None:
    one = replace(_predicted(), tpot_seconds=8e-3 * 1.1)
    other = replace(_predicted(source="another"), tpot_seconds=8e-3 * 1.5)
    rows = metric_errors([one, one, one, other], Metric.TPOT)
    sources = metric_errors([one, one, one, other], Metric.TPOT, sources_alike=True)
    assert rows is not None
    assert sources is not None
    assert rows.mean_absolute == pytest.approx((3 * 0.1 + 0.5) / 4)
    assert sources.mean_absolute == pytest.approx((0.1 + 0.5) / 2)


def _made_rows() -> list[Row]:
    """Return rows whose times are the predictions by constants that are moved, so that a fit has something to find."""
    base = calibration()
    moved = replace(
        base,
        engines={
            name: replace(engine, compute_factor=min(1.35, 1.2 * engine.compute_factor))
            for name, engine in base.engines.items()
        },
    )
    predictor = ServingPredictor(moved)
    rows = []
    for engine in ("vllm", "trtllm"):
        for concurrency in (1, 4, 16, 32):
            for tp in (1, 2):
                row = _row(
                    id=f"{engine}-{concurrency}-{tp}",
                    engine=engine,
                    tp=str(tp),
                    num_gpus=str(tp),
                    isl="3000",
                    concurrency_or_batch=str(concurrency),
                )
                found = predictor.predict(row)
                assert found.tpot_seconds is not None
                assert found.ttft_seconds is not None
                cells = {
                    **row.cells,
                    "tpot_ms": str(1e3 * found.tpot_seconds),
                    "ttft_ms": str(1e3 * found.ttft_seconds),
                }
                rows.append(replace(row, cells=cells))
    return rows


def test_a_fit_comes_nearer_to_what_it_is_fitted_to() -> None:
    rows = _made_rows()
    predictor = ServingPredictor()
    found = [predictor.predict(row) for row in rows]
    fit = ServingFit(calibration(), found, sort_rows(rows))
    fitted = fit.fitted(steps=1)
    again = ServingPredictor(fitted)
    before = metric_errors(found, Metric.TPOT)
    after = metric_errors([again.predict(row) for row in rows], Metric.TPOT)
    assert before is not None
    assert after is not None
    assert after.mean_absolute < 0.6 * before.mean_absolute
    assert all(
        low <= getattr(engine, name) <= high
        for engine in fitted.engines.values()
        for name, (_, low, high) in ENGINE_PRIORS.items()
    )
    # No row of sglang: its constants go towards the values by hand, not to what other rows say.
    assert fitted.engines["sglang"].sequence_seconds == pytest.approx(ENGINE_PRIORS["sequence_seconds"][0], rel=1e-3)


def test_a_group_is_predicted_without_its_rows() -> None:
    rows = _made_rows()
    predictor = ServingPredictor()
    fit = ServingFit(calibration(), [predictor.predict(row) for row in rows], sort_rows(rows))
    left_out = fit.leave_out(lambda entry: group_of(entry, "engine"))
    assert [group.group for group in left_out] == ["trtllm", "vllm"]
    without_vllm = left_out[1].constants.engines
    assert without_vllm["vllm"].sequence_seconds == pytest.approx(ENGINE_PRIORS["sequence_seconds"][0], rel=1e-3)
    assert without_vllm["trtllm"].compute_factor > calibration().engines["trtllm"].compute_factor


def test_a_run_has_the_host_of_its_version() -> None:
    (era,) = calibration().eras["vllm"]
    newest = calibration().engines["vllm"].sequence_seconds
    assert newest < era.sequence_seconds
    told = {
        ("0.12.0", ""): era.sequence_seconds,
        ("0.9.1", "2026-05-01"): era.sequence_seconds,
        ("0.14.0", ""): newest,
        ("0.19.0", "2025-01-01"): newest,
        ("", "2025-10-29"): era.sequence_seconds,
        ("", "2026-04-03"): newest,
        ("nightly-5b8c30d62b754b57", "2026-04-03"): newest,
        ("", ""): newest,
    }
    for (version, day), seconds in told.items():
        run = _predicted(engine="vllm", engine_version=version, date=day).run
        assert run is not None
        assert run.engine.sequence_seconds == seconds
        assert ("version: one of the newest" in run.assumed) == (not version and not day)
    for engine in ("sglang", "trtllm"):
        run = _predicted(engine=engine, engine_version="0.4.1").run
        assert run is not None
        assert run.engine == calibration().engines[engine]


def test_a_fit_finds_the_host_of_earlier_versions_from_their_runs_alone() -> None:
    base = calibration()
    (era,) = base.eras["vllm"]
    moved = replace(base, eras={"vllm": (replace(era, sequence_seconds=7e-5),)})
    rows = []
    for version in ("0.12.0", "0.19.0"):
        for concurrency in (16, 64, 128):
            for tp in (1, 2):
                row = _row(
                    id=f"{version}-{concurrency}-{tp}",
                    engine="vllm",
                    engine_version=version,
                    tp=str(tp),
                    num_gpus=str(tp),
                    concurrency_or_batch=str(concurrency),
                )
                found = ServingPredictor(moved).predict(row)
                assert found.tpot_seconds is not None
                assert found.ttft_seconds is not None
                times = {"tpot_ms": str(1e3 * found.tpot_seconds), "ttft_ms": str(1e3 * found.ttft_seconds)}
                rows.append(replace(row, cells={**row.cells, **times}))
    fit = ServingFit(base, [ServingPredictor().predict(row) for row in rows], sort_rows(rows))
    assert "vllm before 0.14.0.sequence_seconds" in fit.names
    fitted = fit.fitted(steps=1)
    assert fitted.eras["vllm"][0].sequence_seconds > 1.2 * era.sequence_seconds
    ratio = fitted.eras["vllm"][0].sequence_seconds / fitted.engines["vllm"].sequence_seconds
    assert ratio > 1.5


def test_models_of_one_architecture_are_left_out_together() -> None:
    one, other = (_predicted(model=name) for name in ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3"))
    assert group_of(one, "model") == group_of(other, "model") == "DeepseekV3ForCausalLM, 61 layers"
    assert group_of(one, "hardware") == "h100_sxm"


def test_constants_lie_in_their_ranges() -> None:
    constants = calibration()
    for engine in constants.engines.values():
        for name, (_, low, high) in ENGINE_PRIORS.items():
            assert low <= getattr(engine, name) <= high
    for name, (_, low, high) in KERNEL_PRIORS.items():
        assert low <= getattr(constants.kernels, name) <= high
    assert "published" in constants.source


def test_sets_hold_what_counts() -> None:
    rows = [_row(), _row(id="S00890", concurrency_or_batch="9"), _row(id="E", mode="static batch", tpot_ms="")]
    predictor = ServingPredictor()
    sets = sets_of([predictor.predict(row) for row in rows], sort_rows(rows))
    assert [entry.row.id for entry in sets.clean] == ["T-1"]
    assert [entry.row.id for entry in sets.static] == ["E"]
    assert len(sets.every) == 3
