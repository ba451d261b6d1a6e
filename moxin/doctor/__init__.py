"""Preflight: what would spoil a run, found before it starts. A module a check; only `run.py` talks to Ray.

Every check has two halves. The one that runs on a node collects facts as a plain JSON value; the other, a pure function over
the facts of all nodes, judges them.
"""
