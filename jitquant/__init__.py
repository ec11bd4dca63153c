"""jitquant: int8 models out of TorchScript models."""

from jitquant import _version_check

_version_check.check()

from jitquant._save import save  # noqa: E402
from jitquant._version import __version__  # noqa: E402
from jitquant.auto_mapping import AutoMapping, auto_mapping  # noqa: E402
from jitquant.backend import Backend, get_backend  # noqa: E402
from jitquant.bias_correction import correct_bias  # noqa: E402
from jitquant.calibration import (  # noqa: E402
    Calibration,
    calibrate,
    calibrate_distributed,
    merge_calibration,
)
from jitquant.coverage import Coverage, OpCoverage, coverage  # noqa: E402
from jitquant.equalize import equalize_jit  # noqa: E402
from jitquant.errors import (  # noqa: E402
    DroppedWarning,
    FloatWarning,
    JitQuantError,
    JitQuantTypeError,
    JitQuantValueError,
)
from jitquant.explain import Explanation  # noqa: E402
from jitquant.fastest_engine import FastestEngine, fastest_engine  # noqa: E402
from jitquant.machine import Check, check  # noqa: E402
from jitquant.mapping import QConfigMapping  # noqa: E402
from jitquant.op_info import OpInfo  # noqa: E402
from jitquant.qconfig import (  # noqa: E402
    QConfig,
    default_dynamic_qconfig,
    default_qconfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qconfig,
    per_channel_dynamic_qconfig,
    script_qconfig,
)
from jitquant.quantize import (  # noqa: E402
    convert_jit,
    fuse_conv_bn_jit,
    prepare_jit,
    quantize_jit,
)
from jitquant.quantize_dynamic import (  # noqa: E402
    convert_dynamic_jit,
    prepare_dynamic_jit,
    quantize_dynamic_jit,
)
from jitquant.sensitivity import Sensitivity, sensitivity  # noqa: E402

__all__ = [
    "AutoMapping",
    "Backend",
    "Calibration",
    "Check",
    "Coverage",
    "DroppedWarning",
    "Explanation",
    "FastestEngine",
    "FloatWarning",
    "JitQuantError",
    "JitQuantTypeError",
    "JitQuantValueError",
    "OpCoverage",
    "OpInfo",
    "QConfig",
    "QConfigMapping",
    "Sensitivity",
    "__version__",
    "auto_mapping",
    "calibrate",
    "calibrate_distributed",
    "check",
    "convert_dynamic_jit",
    "convert_jit",
    "correct_bias",
    "coverage",
    "default_dynamic_qconfig",
    "default_qconfig",
    "equalize_jit",
    "fastest_engine",
    "float16_dynamic_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "fuse_conv_bn_jit",
    "get_backend",
    "get_default_qconfig",
    "merge_calibration",
    "per_channel_dynamic_qconfig",
    "prepare_dynamic_jit",
    "prepare_jit",
    "quantize_dynamic_jit",
    "quantize_jit",
    "save",
    "script_qconfig",
    "sensitivity",
]
