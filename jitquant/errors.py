"""What jitquant raises (all of it `JitQuantError`), and its warnings."""

__all__ = [
    "DroppedWarning",
    "FloatWarning",
    "JitQuantError",
    "JitQuantTypeError",
    "JitQuantValueError",
]


class JitQuantError(Exception):
    """Base of every error that jitquant raises: what was found, where, and what to do."""


class JitQuantTypeError(JitQuantError, TypeError):
    """An argument or a configuration entry is of a type that jitquant does not take."""


class JitQuantValueError(JitQuantError, ValueError):
    """An argument or a configuration entry has a value that jitquant does not take."""


class DroppedWarning(UserWarning):
    """The converted model lacks methods or attributes of the prepared one."""


class FloatWarning(UserWarning):
    """No op will be int8, or calibration left most of those float that were to be."""
