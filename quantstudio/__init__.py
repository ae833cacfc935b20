"""QuantStudio: quantize a language model on this machine, and measure what it gained and lost."""

__version__ = "0.1.0"
