"""Where the corpora of the real runs lie. They are nobody's to ship: whoever trains puts them into one folder or bucket.

    export MOXIN_DATA=s3://my-bucket/corpora      # holds slimpajama/, dclm-baseline/, the-stack-dedup/, ...

Without it the paths are placeholders: a plan and `--dry-run` work with them, a stage that would read one refuses them.
"""

import os

from moxin.recipe import PLACEHOLDER

VARIABLE = "MOXIN_DATA"


def at(name: str) -> str:
    """The path of a corpus, tokenizer or model folder below `MOXIN_DATA`."""
    return f"{os.environ.get(VARIABLE, PLACEHOLDER).rstrip('/')}/{name}"
