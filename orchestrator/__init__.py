"""Launch, watch and collect training with MindSpore on clusters of Ascend servers."""

__version__ = "0.1.0"
