"""The version, here and nowhere else. The build reads it, so it must stay a plain literal."""

__version__ = "0.1.0"
