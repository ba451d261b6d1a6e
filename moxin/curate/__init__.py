"""Curation: documents are read, cleaned, measured once, and kept or removed with a reason. Only `run.py` talks to Ray."""
