"""Keys, tokens and passwords in code and text become `<KEY>`, or mark a document for removal; counted by kind.

The patterns follow the public descriptions of each issuer's format. What is a placeholder ("your-api-key-here", AWS's own
"…EXAMPLE" keys, `${TOKEN}`) is nobody's and stays. A generic assignment (`password = "…"`) counts only where its value is
as irregular as a random one, by entropy and by how its letters follow one another. Only rows that Arrow's regular
expressions suspect are looked at in Python.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

KEY = "<KEY>"


class Kind(NamedTuple):
    """A format of secret: group 1 of the pattern is what is replaced, the whole match where there is no group."""

    name: str
    pattern: re.Pattern[str]
    suspect: str
    """A cheap RE2 expression that holds wherever the pattern does."""
    source: str


def _kind(name: str, pattern: str, suspect: str, source: str) -> Kind:
    return Kind(name, re.compile(pattern), suspect, source)


_A, _Z = r"(?<![A-Za-z0-9_])", r"(?![A-Za-z0-9_])"
_NAME = r"(?i:pass(?:word|wd|phrase)|pwd|secret|api_?key|(?:access|auth|private|encryption)_?key|token|credentials?)"
KINDS = (
    _kind(
        "private_key",
        # Its body is bounded, so that an opening line without its end is no search to the end of the document.
        r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
        r"((?:[\sA-Za-z0-9+/=:,.>|\"'\\-]{40,12000}?))-----END (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----",
        r"-----BEGIN [A-Z0-9 ]{0,26}PRIVATE KEY",
        "RFC 7468, RFC 4880 §6.2, OpenSSH PROTOCOL.key",
    ),
    _kind(
        "aws_access_key",
        _A + r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}" + _Z,
        r"A[KS]IA[A-Z2-7]{16}|A(?:BI|CC)A[A-Z2-7]{16}",
        "AWS IAM, unique identifiers",
    ),
    _kind(
        "aws_secret_key",
        r"(?i:aws.{0,20}?(?:secret|sk).{0,20}?)[=:>\s\"']{1,6}([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])",
        r"(?i)aws.{0,20}(?:secret|sk)",
        "AWS IAM, access keys",
    ),
    _kind("gcp_api_key", _A + r"AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])", "AIza", "Google Cloud API keys"),
    _kind(
        "google_oauth",
        _A + r"(?:GOCSPX-[A-Za-z0-9_-]{28}|ya29\.[A-Za-z0-9_-]{60,})",
        r"GOCSPX-|ya29\.",
        "Google OAuth 2.0",
    ),
    _kind(
        "github_token",
        _A + r"(?:gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})" + _Z,
        r"gh[pousr]_[A-Za-z0-9]{36}|github_pat_",
        "GitHub, token formats (2021)",
    ),
    _kind("gitlab_token", _A + r"glpat-[A-Za-z0-9_-]{20,}", "glpat-", "GitLab, token overview"),
    _kind(
        "slack_token",
        _A + r"(?:xox[abeoprs]-(?:[0-9]{1,16}-){0,3}[A-Za-z0-9-]{10,}|xapp-\d-[A-Z0-9]+-\d+-[a-f0-9]{16,})",
        "xox[abeoprs]-|xapp-",
        "Slack, token types",
    ),
    _kind(
        "slack_webhook",
        r"hooks\.slack\.com/services/(T[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,})",
        r"hooks\.slack\.com",
        "Slack, incoming webhooks",
    ),
    _kind(
        "stripe_key", _A + r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}", "[rs]k_(?:live|test)_", "Stripe, API keys"
    ),
    _kind(
        "model_api_key",
        r"(?<![A-Za-z0-9_-])(?:sk-(?:proj-|svcacct-|ant-[a-z0-9]+-)?(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{32,}|hf_[A-Za-z0-9]{34,40})"
        r"(?![A-Za-z0-9_-])",
        "sk-[A-Za-z0-9_-]{32}|hf_[A-Za-z0-9]{34}",
        "OpenAI, Anthropic and Hugging Face, user access tokens",
    ),
    _kind("npm_token", _A + r"npm_[A-Za-z0-9]{36}" + _Z, "npm_[A-Za-z0-9]{36}", "npm, access tokens (2021)"),
    _kind("pypi_token", r"pypi-AgE[A-Za-z0-9_-]{50,}", "pypi-AgE", "PyPI, API tokens"),
    _kind("sendgrid_key", _A + r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", r"SG\.", "SendGrid, API keys"),
    _kind(
        "jwt",
        r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}",
        r"eyJ[A-Za-z0-9_-]{8,}\.eyJ",
        "RFC 7519, RFC 7515 §3.1",
    ),
    _kind(
        "url_password",
        _A + r"[a-z][a-z0-9+.-]{1,14}://[^\s:/@\"'<>]{1,64}:([^\s:/@\"'<>]{8,64})@[A-Za-z0-9]",
        r"://[^\s:/@\"'<>]{1,64}:[^\s:/@\"'<>]{8,64}@",
        "RFC 3986 §3.2.1",
    ),
    _kind(
        "password",
        _NAME
        + r"[\w-]{0,20}[\"']?\]?\s{0,3}(?::\s{0,3}str\s{0,3}=|:=|=>|[:=])\s{0,3}[rbu]?[\"']([^\s\"']{8,128})[\"']",
        r"(?i)(?:pass(?:word|wd|phrase)|pwd|secret|key|token|credentials?)[\w-]{0,20}[\"']?\]?\s{0,3}"
        r"(?::\s{0,3}str\s{0,3}=|:=|=>|[:=])\s{0,3}[rbu]?[\"'][^\s\"']{8}",
        "assignments as in detect-secrets' KeywordDetector",
    ),
)
GUARDED = ("password", "url_password", "aws_secret_key")
"""Kinds whose format says little, so that the value must look random."""
SUSPECT = "|".join(kind.suspect if "(?i)" not in kind.suspect else f"(?:{kind.suspect})" for kind in KINDS)
PLACEHOLDER = re.compile(
    r"(?i)example|placeholder|your|dummy|changeme|insert|redacted|xxxx|\*\*\*|\.\.\.|1234567|abcdef|<[a-z_ -]+>"
    r"|\$[{(\w]|%[(\w]|\{\{?[\w.]*\}?\}|(.)\1{7}"
)
MIN_ENTROPY = 3.0
"""Bits per character of a guarded value: 8 distinct characters."""
_PAIRS = """th he in er an re on at en nd ti es or te of ed is it al ar st to nt ng se ha as ou io le ve co me de hi ri ro
ic ne ea ra ce li ch ll be ma si om ur ss ow ke wo ey rd pa to ok se cr et us rn am ac ap pi ct ut la il"""
COMMON_PAIRS = frozenset(_PAIRS.split())


def entropy(value: str) -> float:
    """Shannon's, bits per character."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)


def looks_random(value: str) -> bool:
    """Whether a value is irregular enough for a key or a generated password: not words, not a name, not an expression."""
    if PLACEHOLDER.search(value) or entropy(value) < MIN_ENTROPY:
        return False
    kinds = [any(map(test, value)) for test in (str.islower, str.isupper, str.isdigit)]
    others = sum(not char.isalnum() for char in value)
    if not kinds[2] or sum(kinds) + (others > 0) < 2:
        return False  # without a digit it is a word or a name
    if re.search(r"[()\[\]{};,\\]|://|^[/.~]|\d[.:-]\d+[.:-]\d", value):
        return False  # an expression, a path, a date, a version
    lower = value.lower()
    pairs = [a + b for a, b in itertools.pairwise(lower) if a.isalpha() and b.isalpha()]
    is_hex = (
        re.fullmatch(r"[0-9a-f]{24,}|[0-9A-F]{24,}", value) is not None
    )  # "ed" and "de" are no sign of words there
    wordy = 0 if is_hex else sum(pair in COMMON_PAIRS for pair in pairs)
    n_digits = sum(char.isdigit() for char in value)
    changes = sum(
        a.isdigit() != b.isdigit() or (a.islower() and b.isupper()) for a, b in itertools.pairwise(value)
    )
    return wordy <= 0.3 * max(len(pairs), 1) and changes >= 2 and n_digits < len(value) - 1


def find(text: str, kinds: Iterable[Kind] = KINDS) -> Iterator[tuple[str, int, int]]:
    """The secrets of a text: kind, first and last + 1 character. Of overlapping ones the earlier kind of `KINDS` counts."""
    taken: list[tuple[int, int]] = []
    for kind in kinds:
        for match in kind.pattern.finditer(text):
            group = 1 if kind.pattern.groups else 0
            start, end = match.span(group)
            value = match.group(group)
            if any(start < other_end and other_start < end for other_start, other_end in taken):
                continue
            if kind.name in GUARDED and not looks_random(value):
                continue
            if kind.name != "private_key" and PLACEHOLDER.search(value):
                continue
            if kind.name == "private_key" and ("..." in value or len(set(value)) < 20):
                continue
            taken.append((start, end))
            yield kind.name, start, end


def scrub_text(text: str, kinds: Iterable[Kind] = KINDS) -> tuple[str, Counter[str]]:
    """The text with `<KEY>` for every secret, and how many there were of each kind."""
    found = sorted((start, end, name) for name, start, end in find(text, kinds))
    pieces, at = [], 0
    for start, end, _ in found:
        pieces += [text[at:start], KEY]
        at = end
    return "".join([*pieces, text[at:]]), Counter(name for _, _, name in found)


class Scrubbed(NamedTuple):
    """A column of n texts after the search."""

    text: pa.Array
    """Without secrets; where `replace` was false, as it came."""
    holds: NDArray[np.bool_]
    """Whether the text held any: what a caller that drops such documents drops."""
    counts: Counter[str]
    """Secrets by kind."""


def scrub(text: pa.Array, *, replace: bool = True) -> Scrubbed:
    """Searches a column: with `replace` the secrets become `<KEY>`, without it the documents are only marked in `holds`."""
    suspects = pc.fill_null(pc.match_substring_regex(text, SUSPECT), False)
    places = np.flatnonzero(suspects.to_numpy(zero_copy_only=False))
    holds, total, replaced = np.zeros(len(text), bool), Counter[str](), []
    few = pc.filter(text, suspects)
    which = [pc.match_substring_regex(few, kind.suspect).to_numpy(zero_copy_only=False) for kind in KINDS]
    for row, (place, value) in enumerate(zip(places, few.to_pylist(), strict=True)):
        clean, counts = scrub_text(
            value, [kind for kind, holds_ in zip(KINDS, which, strict=True) if holds_[row]]
        )
        replaced.append(clean)
        holds[place] = bool(counts)
        total += counts
    if replace and total:
        text = pc.replace_with_mask(text, suspects, pa.array(replaced, text.type))
    return Scrubbed(text, holds, total)
