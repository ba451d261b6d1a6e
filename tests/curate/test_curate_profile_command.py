"""`moxin profile` prints what a profile does, with changes, and all of them."""

from moxin import cli
from moxin.curate.profiles import PROFILES


def test_a_profile_is_printed_with_its_changes(capsys):
    assert cli.main(["profile", "fineweb", "--set", "list_ratio=0.25", "--set", "near.threshold=0.8"]) == 0
    told = capsys.readouterr().out
    assert "newlines_per_word > 0.25" in told
    assert "near.threshold" in told
    assert cli.main(["profile"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in PROFILES)
    assert cli.main(["profile", "finewebb"]) == 2
    assert "nearest is 'fineweb'" in capsys.readouterr().out
