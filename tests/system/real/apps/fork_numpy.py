"""A product large enough for the threads of OpenBLAS, when the module is imported and in each request."""

import numpy as np
from fork_common import Outcome, app_of

matrix = np.arange(512 * 512, dtype=np.float64).reshape(512, 512) % 7
expected = matrix @ matrix
generator = np.random.default_rng()


def work() -> Outcome:
    """right: the product is that of the import; drawn, generated: random numbers."""
    return {
        "right": bool((matrix @ matrix == expected).all()),
        "drawn": int(np.random.randint(1 << 30)),
        "generated": int(generator.integers(1 << 30)),
    }


app = app_of(work)
