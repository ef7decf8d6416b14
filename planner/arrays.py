"""Types of arrays; the names of arrays say their axes by position (`seconds_LO`: layers by options)."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
