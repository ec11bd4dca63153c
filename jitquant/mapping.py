"""QConfigMapping: which ops get which QConfig."""

import json
import os
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch

from jitquant import _torch_ao
from jitquant._mapping_forms import read_entries, with_entries, with_torch_ao
from jitquant._plain import parse, write_qconfig
from jitquant._rule import FUSED_FLOAT, KINDS, Predicate, Rule
from jitquant._type_names import type_name
from jitquant.errors import JitQuantTypeError, JitQuantValueError
from jitquant.explain import Explanation, explain
from jitquant.observers import Observer
from jitquant.qconfig import QConfig, check_qconfig, qconfig_of_name

__all__ = ["KINDS", "Predicate", "QConfigMapping", "Rule", "as_mapping"]


@dataclass(frozen=True)
class QConfigMapping:
    """Which ops get which QConfig, by rules. Immutable: each `set_...` returns a new mapping.

    Of several rules that match an op, the strongest decides. From weakest to strongest: global,
    object type, module name regex, module name, (module name, object type, index), predicate. A
    qconfig of None leaves the op float, and keeps it out of fusions: its BatchNorm and padding are
    not folded. "fused float" in its place leaves the op float and folds them. What no rule matches
    stays float too.

    Attributes:
        rules: weakest kind first, and of one kind in the order in which they were set; setting
            one again replaces it.
        predicate: asked first about each op.
        example_inputs: a batch, from which the predicate's ops know their shapes.
    """

    rules: tuple[Rule, ...] = ()
    predicate: Predicate | None = None
    example_inputs: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a configuration: the class is called without arguments, or by its setters."""
        if not (isinstance(self.rules, tuple) and all(isinstance(r, Rule) for r in self.rules)):
            raise JitQuantTypeError(
                f"QConfigMapping: rules must be a tuple of Rule, got {type(self.rules).__name__}. "
                "Begin with QConfigMapping() and its setters, or with QConfigMapping.from_dict."
            )

    def set_global(self, qconfig: object) -> "QConfigMapping":
        """All ops that no other rule matches.

        Args:
            qconfig: here and below, a `QConfig`, one of torch.ao, None or "fused float".

        Raises:
            JitQuantTypeError, JitQuantValueError: here and below, see `check_qconfig`.
        """
        return self._with("", (), qconfig, "set_global")

    def set_object_type(self, object_type: object, qconfig: object) -> "QConfigMapping":
        """Ops of this type, and ops inside of modules of this class.

        A module class is compared with what the archive says, so subclasses do not count. A
        function stands for its op, in the user's spelling or jitquant's: `F.linear`, `torch.addmm`
        and "aten::addmm" match a linear layer that was traced as an addmm.

        Several types can match one op. Then the class of its module decides if that is one of
        torch.nn, else the op as written, the op in jitquant's spelling, the class of its module,
        the class of the module around that, and so on.

        Args:
            object_type: `nn.Conv2d`, `F.linear`, `torch.add`, "aten::add", or the qualified name
                of a class, such as "torchvision.models.resnet.BasicBlock".
            qconfig: see `set_global`.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for a type that no op can have.
        """
        where = f"set_object_type({_shown(object_type)})"
        return self._with("object_type", (type_name(object_type, where),), qconfig, where)

    def set_module_name_regex(self, regex: str, qconfig: object) -> "QConfigMapping":
        r"""Ops of modules whose path matches; of several expressions the one set first decides.

        Args:
            regex: matched at the start of the whole path, as by `re.match`: r"layer1\." also
                matches "layer1.0.conv1".
            qconfig: see `set_global`.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for what is no regular expression.
        """
        where = f"set_module_name_regex({regex!r})"
        _check_string(regex, "a regular expression", where)
        try:
            re.compile(regex)
        except re.error as error:
            raise JitQuantValueError(f"{where}: no regular expression: {error}.") from error
        return self._with("module_name_regex", (regex,), qconfig, where)

    def set_module_name(self, module_name: str, qconfig: object) -> "QConfigMapping":
        """Ops inside of the submodule with this path; of several paths the longest decides.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for "", which `set_global` is for.
        """
        where = f"set_module_name({module_name!r})"
        _check_string(module_name, "a submodule's path", where)
        if not module_name:
            raise JitQuantValueError(f"{where}: for the whole model use set_global.")
        return self._with("module_name", (module_name,), qconfig, where)

    def set_module_name_object_type_order(
        self, module_name: str, object_type: object, index: int, qconfig: object
    ) -> "QConfigMapping":
        """One op of a module, or one module of a class in its parent.

        Args:
            module_name: path of the module that calls the op, or of the parent; "" is the top.
            object_type: see `set_object_type`.
            index: how many of this type come before it in the module, counted in each method in
                graph order. A module counts once, however often it is called.
            qconfig: see `set_global`.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for an index that is no int of 0 or more.
        """
        where = (
            f"set_module_name_object_type_order({module_name!r}, {_shown(object_type)}, {index!r})"
        )
        _check_string(module_name, "a submodule's path", where)
        if not isinstance(index, int) or isinstance(index, bool):
            raise JitQuantTypeError(f"{where}: the index must be an int.")
        if index < 0:
            raise JitQuantValueError(f"{where}: the index must be 0 or more.")
        key = (module_name, type_name(object_type, where), index)
        return self._with("module_name_object_type_order", key, qconfig, where)

    def set_predicate(
        self, predicate: Predicate, example_inputs: object = None
    ) -> "QConfigMapping":
        """Ask a function about each op, before any other rule.

        Args:
            predicate: called with an `OpInfo`. It returns a qconfig, None to leave the op float, or
                NotImplemented to let the other rules decide.
            example_inputs: a tensor, a tuple or list of the arguments of forward, or a dict of
                keyword arguments. The float model runs on it once before it is asked, to learn
                `OpInfo.shapes`, which are None otherwise.

        Raises:
            JitQuantTypeError: predicate cannot be called, or example_inputs is something else.
        """
        if not callable(predicate):
            raise JitQuantTypeError(
                "set_predicate: expected a function of an OpInfo, "
                f"got {predicate!r} of type {type(predicate).__name__}."
            )
        if not isinstance(example_inputs, torch.Tensor | tuple | list | Mapping | None):
            raise JitQuantTypeError(
                "set_predicate: example_inputs must be a tensor, a tuple or list of the arguments "
                "of forward, or a dict of keyword arguments, got "
                f"{type(example_inputs).__name__}."
            )
        return replace(self, predicate=predicate, example_inputs=example_inputs)

    def explain(self, model: torch.jit.ScriptModule) -> Explanation:
        """Which rule decides on each op of a float model: print the result.

        Args:
            model: what `prepare_jit` takes. It is not changed.

        Raises:
            JitQuantError: see `prepare_jit`; but a mapping that quantizes nothing is no error.
        """
        return explain(self, model)

    def to_dict(self) -> dict[str, Any]:
        """The rules as plain data: the dictionary form, with each qconfig as a dict or None.

        Raises:
            JitQuantValueError: the mapping has a predicate, or an observer made by a function.
        """
        if self.predicate is not None:
            advice = "Keep the code that makes it: the mapping has no other rules."
            if self.rules:
                advice = "Write the other rules, and set the predicate again after reading them."
            raise JitQuantValueError(
                f"the predicate {self.predicate!r} is code, which cannot be written. {advice}"
            )
        plain: dict[str, Any] = {}
        for rule in self.rules:
            qconfig = FUSED_FLOAT if rule.is_fused else write_qconfig(rule.qconfig, str(rule))
            if rule.key:
                plain.setdefault(rule.kind, []).append([*rule.key, qconfig])
            else:
                plain[""] = qconfig
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any], where: str = "from_dict") -> "QConfigMapping":
        """The mapping that a dictionary means.

        Args:
            plain: what `to_dict` gives, or any dictionary that `prepare_jit` takes. A string can
                stand for a qconfig: "float" for None, "default" for `default_qconfig`, "x86" or
                another engine for its default.
            where: what the errors call it.

        Raises:
            JitQuantTypeError, JitQuantValueError: see the setters.
        """
        if not isinstance(plain, Mapping):
            raise JitQuantTypeError(f"{where}: expected a dict, got {type(plain).__name__}.")
        return as_mapping(read_entries(plain, where), where)

    def to_json(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "QConfigMapping":
        """`from_dict` of a JSON text.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for what is no JSON.
        """
        return cls.from_dict(parse(text, "json", "from_json"), "from_json")

    @classmethod
    def from_toml(cls, text: str) -> "QConfigMapping":
        """`from_dict` of a TOML text.

        Raises:
            JitQuantTypeError, JitQuantValueError: also for what is no TOML.
        """
        return cls.from_dict(parse(text, "toml", "from_toml"), "from_toml")

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "QConfigMapping":
        """`from_dict` of a file whose name ends in .json or .toml.

        Raises:
            OSError: the file cannot be read.
            JitQuantTypeError, JitQuantValueError: also for a file of another form.
        """
        if not isinstance(path, str | os.PathLike):
            raise JitQuantTypeError(f"from_file: expected a path, got {type(path).__name__}.")
        file = Path(path)
        form = file.suffix.removeprefix(".")
        if form not in ("json", "toml"):
            raise JitQuantValueError(f"{file}: expected a name that ends in .json or .toml.")
        return cls.from_dict(parse(file.read_text(encoding="utf-8"), form, str(file)), str(file))

    def _with(
        self, kind: str, key: tuple[Any, ...], qconfig: object, where: str
    ) -> "QConfigMapping":
        is_fused = isinstance(qconfig, str) and qconfig == FUSED_FLOAT
        is_float = qconfig is None or is_fused
        rule = Rule(kind, key, None if is_float else _checked(qconfig, where), is_fused=is_fused)
        rules = {(each.kind, each.key): each for each in self.rules}
        rules[kind, key] = rule
        in_order = sorted(rules.values(), key=lambda each: KINDS.index(each.kind))
        return replace(self, rules=tuple(in_order))


def _checked(qconfig: object, where: str) -> QConfig:
    """With a factory in place of each observer class, so that equal qconfigs are equal."""
    factories = check_qconfig(qconfig, where)
    return QConfig(*(f.with_args() if _is_observer(f) else f for f in factories))


def _is_observer(factory: object) -> TypeGuard[type[Observer]]:
    return isinstance(factory, type) and issubclass(factory, Observer)


def as_mapping(
    config: object, where: str = "qconfig_dict", example: str = "get_default_qconfig()"
) -> QConfigMapping:
    """The mapping that a user's configuration means.

    Args:
        config: a QConfigMapping, ours or torch.ao's; a dict of submodule paths to qconfigs, ""
            being global; the dictionary form with the keys of KINDS and lists of
            (key..., qconfig), or dicts if there is one key; a mix of both; or a predicate.
        where: what the errors call it.
        example: the code of a qconfig that they propose.

    Raises:
        JitQuantTypeError, JitQuantValueError: anything else, and see the setters.
    """
    if isinstance(config, QConfigMapping):
        return config
    if _torch_ao.is_mapping(config):
        return with_torch_ao(QConfigMapping(), config, where)
    if isinstance(config, Mapping):
        return with_entries(QConfigMapping(), config, where)
    if callable(config) and not isinstance(config, type):
        return QConfigMapping().set_predicate(config)
    raise JitQuantTypeError(
        f"{where} must be a dict of submodule names to qconfigs, such as "
        f"{{'': {example}}}, a QConfigMapping or a predicate, "
        f"got {type(config).__name__}.{_meant(config)}"
    )


def _meant(config: object) -> str:
    """What a user may have meant by something that is no configuration."""
    if isinstance(config, Set):
        return " For types give QConfigMapping().set_object_type(type, qconfig)."
    if isinstance(config, str | os.PathLike) and not qconfig_of_name(config):
        return f" Is it a file? Read it: QConfigMapping.from_file({os.fspath(config)!r})."
    if isinstance(config, tuple) and hasattr(config, "_fields"):
        return " For the whole model give {'': qconfig}."
    meant = qconfig_of_name(config)
    return f" For the whole model give {{'': {meant}}}." if meant else ""


def _check_string(value: object, what: str, where: str) -> None:
    if not isinstance(value, str):
        raise JitQuantTypeError(f"{where}: expected {what}, got {type(value).__name__}.")


def _shown(object_type: object) -> str:
    if isinstance(object_type, type | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return getattr(object_type, "__name__", str(object_type))
    name = getattr(object_type, "__name__", None)
    return name if isinstance(name, str) else repr(object_type)
