"""One sample or more for every row of the op table: a small model whose int8 form is known."""

from tests.samples import (
    activations,
    arithmetic,
    convolutions,
    lists,
    movers,
    normalizations,
    pools,
    rearranging,
    resizing,
    scalars,
)
from tests.samples.base import OpSample

__all__ = ["SAMPLES", "OpSample"]

SAMPLES: list[OpSample] = [
    *convolutions.SAMPLES,
    *activations.SAMPLES,
    *arithmetic.SAMPLES,
    *pools.SAMPLES,
    *rearranging.SAMPLES,
    *movers.SAMPLES,
    *lists.SAMPLES,
    *normalizations.SAMPLES,
    *resizing.SAMPLES,
    *scalars.SAMPLES,
]
