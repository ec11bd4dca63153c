"""Types of the C++ extension. Private: use the functions that `jitquant` exports."""

from collections.abc import Callable

import torch

class OpRecord:
    method: str
    kind: str
    path: str
    source: str
    qconfig: int
    int8: bool
    reason: str
    def __init__(self) -> None: ...

class Result:
    @property
    def module(self) -> torch._C.ScriptModule: ...
    @property
    def records(self) -> list[OpRecord]: ...
    @property
    def inputs(self) -> list[InputSeen]: ...
    @property
    def dropped(self) -> list[str]: ...

class InputSeen:
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> list[int]: ...
    @property
    def dtype(self) -> int: ...

class ConfiguredOp:
    @property
    def method(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def written(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def origin(self) -> int: ...

class Watched:
    @property
    def module(self) -> torch._C.ScriptModule: ...
    @property
    def observers(self) -> list[list[str]]: ...

class Preparation:
    def __init__(
        self,
        model: torch._C.ScriptModule,
        methods: list[str],
        trace: Callable[[str, str, str], None] | None,
    ) -> None: ...
    @property
    def ops(self) -> list[ConfiguredOp]: ...
    @property
    def written(self) -> list[str]: ...
    def finish(
        self,
        decisions: list[int],
        qconfigs: list[tuple[torch._C.ScriptModule, torch._C.ScriptModule]],
        shape_recorder: torch._C.ScriptModule,
    ) -> Result: ...
    def watch(self, shape_recorder: torch._C.ScriptModule) -> Watched: ...

class SupportedOp:
    @property
    def op(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def int8_op(self) -> str: ...
    @property
    def relu_op(self) -> str: ...

class FloatOp:
    @property
    def op(self) -> str: ...
    @property
    def reason(self) -> str: ...

def supported_ops() -> list[SupportedOp]: ...
def float_ops() -> list[FloatOp]: ...
def convert(
    prepared: torch._C.ScriptModule,
    methods: list[str],
    records: list[OpRecord],
    debug: bool,
    preserved: list[str],
    trace: Callable[[str, str, str], None] | None,
) -> Result: ...
def fuse_conv_bn(
    model: torch._C.ScriptModule,
    methods: list[str],
    trace: Callable[[str, str, str], None] | None,
) -> Result: ...
