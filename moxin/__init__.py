"""moxin: an open LLM factory on Ray, from raw documents to a served chat model."""

__version__ = "0.1.0"
