"""llava-tools: from raw data to a LLaVA model that people can use."""

__version__ = "0.1.0"
