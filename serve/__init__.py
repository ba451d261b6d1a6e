"""The Ray Serve application: an OpenAI-compatible HTTP service around the inference engine."""
