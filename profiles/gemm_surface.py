"""How long a matrix product takes on any GPU: tiles, waves, splits of the inner dimension, and traffic.

A product is cut into tiles of the result. A tile costs its multiply-adds, at a rate that falls with its size because
its operands are read again for every tile (`half_rate_size`), and a fixed number of steps of the inner dimension to
begin and end (`prologue_steps`). Tiles are dealt to the compute units in waves; of an unfinished last wave a part is
paid for as if it were whole (`whole_wave_fraction`; persistent kernels deal more finely). Where there are fewer tiles
than units the inner dimension is split and the parts are summed. The kernel takes whichever of the candidate tiles is
fastest, and no less than its operands and result take to move.

These are the facts that CUTLASS's and cuBLAS's heuristics weigh (Osama et al., Stream-K, arXiv 2301.03598, section 3).
Axes: P products, T candidate tilings.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

_TILES = ((256, 128), (128, 256), (128, 128), (64, 128), (64, 64))
_SPLITS = (1, 2, 4, 8)
_ROWS_T = np.array([rows for rows, _ in _TILES for _ in _SPLITS], dtype=np.float64)
_COLUMNS_T = np.array([columns for _, columns in _TILES for _ in _SPLITS], dtype=np.float64)
_SPLIT_T = np.array(_SPLITS * len(_TILES), dtype=np.float64)
_SIZE_T = 2 * _ROWS_T * _COLUMNS_T / (_ROWS_T + _COLUMNS_T)
_SUMS_T = np.where(_SPLIT_T > 1, _ROWS_T * _COLUMNS_T * _SPLIT_T * 8, 0.0)
"""Bytes that splitting adds for each tile: fp32 parts written and read."""

CACHE_OVER_MEMORY = 2.0
"""Assumed, not fitted: sums of parts are read back from the L2 cache, at about twice the bandwidth of memory."""

SHARPNESS = 8.0
"""Exponent of the soft maximum of computing and moving; chosen, not fitted: at equal times it is 9 % above either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmRates:
    """What the surface reads of one GPU and one number format.

    Args:
        flops_per_second: Rate that an endless product of large tiles would reach.
        bytes_per_second: Memory bandwidth that a product reaches.
        num_units: Compute units.
        start_seconds: Launch and drain of a kernel.
        half_rate_size: Tile size (harmonic mean of its sides) at which half of the rate is reached.
        prologue_steps: Steps of the inner dimension that a tile's beginning and end take.
        whole_wave_fraction: Part of an unfinished wave that is paid for.
    """

    flops_per_second: float
    bytes_per_second: float
    num_units: int
    start_seconds: float
    half_rate_size: float
    prologue_steps: float
    whole_wave_fraction: float


class GemmSurface:
    """Times of products on one GPU in one number format.

    Args:
        rates: The GPU.
    """

    def __init__(self, rates: GemmRates) -> None:
        self.rates = rates
        per_unit_T = rates.flops_per_second / rates.num_units * _SIZE_T / (_SIZE_T + rates.half_rate_size)
        self._step_seconds_T = 2 * _ROWS_T * _COLUMNS_T / per_unit_T
        self._sum_seconds_T = _SUMS_T / (rates.bytes_per_second * CACHE_OVER_MEMORY)
        self._share_T = _SPLIT_T / rates.num_units

    def seconds_P(
        self, m_P: ArrayLike, n_P: ArrayLike, k_P: ArrayLike, *, bytes_P: ArrayLike, batch_P: ArrayLike = 1
    ) -> FloatArray:
        """Return the seconds of products `[m, k] [k, n]`, `batch` of each at once.

        Args:
            m_P: Rows of the result.
            n_P: Columns of the result.
            k_P: Inner dimension.
            bytes_P: Traffic of operands and result, all of the batch.
            batch_P: Independent products of each shape.
        """
        m, n, k, batch = (np.asarray(size, dtype=np.float64)[..., np.newaxis] for size in (m_P, n_P, k_P, batch_P))
        tiles_PT = batch * np.ceil(m / _ROWS_T) * np.ceil(n / _COLUMNS_T)
        return self._seconds_P(tiles_PT, k, bytes_P)

    def grouped_seconds(
        self, rows_G: FloatArray, counts_G: FloatArray, columns: int, depth: int, *, num_bytes: float
    ) -> float:
        """Return the seconds of one kernel that multiplies groups of rows with weights of their own.

        Args:
            rows_G: Rows of each group.
            counts_G: Groups with so many rows.
            columns: Columns of every result.
            depth: Inner dimension of all.
            num_bytes: Traffic of operands and results.
        """
        tiles_GT = counts_G[:, np.newaxis] * np.ceil(rows_G[:, np.newaxis] / _ROWS_T) * np.ceil(columns / _COLUMNS_T)
        return float(self._seconds_P(tiles_GT.sum(axis=0), np.asarray(float(depth)), num_bytes))

    def _seconds_P(self, tiles_PT: FloatArray, k: FloatArray, bytes_P: ArrayLike) -> FloatArray:
        """Return the seconds of kernels with so many tiles in each of the candidate tilings."""
        begun_PT = np.maximum(tiles_PT * self._share_T, 1.0)
        waves_PT = begun_PT + self.rates.whole_wave_fraction * (np.ceil(begun_PT) - begun_PT)
        steps_PT = np.ceil(k / _SPLIT_T) + self.rates.prologue_steps
        computing_PT = waves_PT * steps_PT * self._step_seconds_T + tiles_PT * self._sum_seconds_T
        computing_P = computing_PT.min(axis=-1)
        moving_P = np.asarray(bytes_P, dtype=np.float64) / self.rates.bytes_per_second
        longer_P: FloatArray = (computing_P**SHARPNESS + moving_P**SHARPNESS) ** (1 / SHARPNESS)
        return self.rates.start_seconds + longer_P
