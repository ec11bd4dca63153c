"""The errors that jitquant raises. All of them are `JitQuantError`."""

__all__ = ["JitQuantError", "JitQuantTypeError", "JitQuantValueError"]


class JitQuantError(Exception):
    """Base of every error that jitquant raises: what was found, where, and what to do."""


class JitQuantTypeError(JitQuantError, TypeError):
    """An argument or a configuration entry is of a type that jitquant does not take."""


class JitQuantValueError(JitQuantError, ValueError):
    """An argument or a configuration entry has a value that jitquant does not take."""
