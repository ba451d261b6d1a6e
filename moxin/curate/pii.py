"""E-mail and public IP addresses become `<EMAIL>` and `<IP_ADDRESS>`.

Private, loopback and documentation addresses are nobody's and stay, and so do version numbers that look like an address.
Only rows that hold a `@`, dots between digits, or colons between hexadecimal digits are looked at in Python.
"""

import ipaddress
import re
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

EMAIL = re.compile(
    # The look-behind keeps the search linear in long runs of letters.
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_%+-](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_%+-])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)")
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:]|\.\d)")
"""Global unicast is 2000::/3 (RFC 4291, §2.4): other runs of colons, as in times and slices, are none."""
VERSION_BEFORE = re.compile(r"(?:version|release|[<>=~!]=|[<>])\s*$", re.IGNORECASE)
MAY_HOLD = r"@|\d\.\d{1,3}\.\d{1,3}\.\d|[23][0-9A-Fa-f]{3}:"


def scrub_text(text: str) -> tuple[str, Counter[str]]:
    """The text without addresses, and how many of each kind were replaced: `email`, `ip`."""
    counts: Counter[str] = Counter()

    def email(match: re.Match[str]) -> str:
        counts["email"] += 1
        return "<EMAIL>"

    def address(match: re.Match[str]) -> str:
        found = match.group()
        kept = found.rstrip(":")  # a colon after an address is punctuation, two are part of it
        kept = found if found.endswith("::") else kept
        before = match.string[max(match.start() - 12, 0) : match.start()]
        if not _is_public(kept) or VERSION_BEFORE.search(before):
            return found
        counts["ip"] += 1
        return "<IP_ADDRESS>" + found[len(kept) :]

    text = EMAIL.sub(email, text)
    text = IPV4.sub(address, text)
    text = IPV6.sub(address, text)
    return text, counts


def _is_public(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if parsed.version == 4 and max(parsed.packed) < 10:
        return False  # 2.4.1.0 is a version or a section
    return parsed.is_global and not parsed.is_multicast


def scrub(text: pa.Array) -> tuple[pa.Array, Counter[str]]:
    """The column without addresses, and the totals by kind."""
    suspects = pc.match_substring_regex(text, MAY_HOLD)
    total: Counter[str] = Counter()
    replaced = []
    for value in pc.filter(text, suspects).to_pylist():
        clean, counts = scrub_text(value)
        replaced.append(clean)
        total += counts
    if not total:
        return text, total
    # `replace_with_mask` takes the replacements one by one where the mask is true.
    return pc.replace_with_mask(text, suspects, pa.array(replaced, pa.string())), total
