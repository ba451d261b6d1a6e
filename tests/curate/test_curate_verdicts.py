"""Verdicts on real documents with the splitters that are the default: the values that are told are those that decide."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard
from fuzz_text import buffers, document, texts

from moxin.curate.profiles import PROFILES, Profile, find_profile
from moxin.curate.verdicts import OPERATORS, Verdicts, apply

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "data" / "corpus"


def webtext() -> list[str]:
    path = CORPUS / "webtext.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    raw = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read().decode()
    documents = [json.loads(line)["text"] for line in raw.split("\n") if line]
    return [text[at : at + 3000] for text in documents for at in range(0, len(text), 3000)][:400]


def assert_signals_decide(profile: Profile, verdicts: Verdicts, n: int) -> None:
    assert [part.shape for part in verdicts.signals] == [(n, len(stage.rules)) for stage in profile.stages]
    assert all(part.dtype == np.float32 for part in verdicts.signals)
    for doc in range(n):
        last = int(verdicts.stage[doc]) if verdicts.stage[doc] >= 0 else len(profile.stages)
        for position, (stage, values) in enumerate(zip(profile.stages, verdicts.signals, strict=True)):
            if position > last:
                assert np.isnan(values[doc]).all()
                continue
            # float32 may round a value onto its threshold: such a rule is taken not to hold
            holds = [
                bool(OPERATORS[rule.op](value, rule.threshold))
                and abs(value - rule.threshold) > 1e-6 * abs(rule.threshold)
                for rule, value in zip(stage.rules, values[doc].tolist(), strict=True)
            ]
            if position < last:
                assert not any(holds)
            else:
                rule = int(verdicts.rule[doc])
                assert values[doc, rule] == np.float32(verdicts.value[doc])
                assert not any(holds[:rule])


@pytest.mark.parametrize("name", PROFILES)
def test_signals_of_fuzzed_documents_decide(name: str) -> None:
    draw = random.Random(4)
    documents = [document(draw) for _ in range(200)]
    assert_signals_decide(PROFILES[name], apply(PROFILES[name], *buffers(documents)), len(documents))


@pytest.mark.parametrize("name", ["gopher/dclm", "refinedweb/dclm", "fineweb"])
def test_signals_of_real_documents_decide(name: str) -> None:
    documents, profile = webtext(), find_profile(name)
    verdicts = apply(profile, *buffers(documents))
    assert 0 < len(verdicts.kept) < len(documents)
    assert_signals_decide(profile, verdicts, len(documents))
    assert len(texts(verdicts.data, verdicts.offsets)) == len(verdicts.kept)


def test_no_documents_have_no_signals() -> None:
    for profile in PROFILES.values():
        assert_signals_decide(profile, apply(profile, *buffers([])), 0)
