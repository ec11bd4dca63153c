"""restore_state: convert starts from the state that the model had before calibration."""

from tests.ir import scripted as script
from tests.ir import trace_convert, trace_prepare
from tests.passes.test_keep_state import Counts, X


def test_converted_model_starts_where_the_original_did() -> None:
    prepared = trace_prepare(script(Counts())).model
    for _ in range(3):
        prepared(X)
    converted = trace_convert(prepared).model
    assert (converted.count, prepared.count) == (0, 3)
    converted(X)
    assert converted.count == 1
    assert not converted._c.hasattr("jitquant_initial_state")
