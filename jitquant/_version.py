"""The version of jitquant."""

__version__ = "0.1.0"
