"""The inference engine: requests in, token events out; no HTTP, no Ray."""
