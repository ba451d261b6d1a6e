"""E-mail and public IP addresses become `<EMAIL>` and `<IP_ADDRESS>`; phone numbers, where asked for, `<PHONE>`.

Private, loopback and documentation addresses are nobody's and stay, and so do version numbers that look like an address.
Only rows that hold a `@` between letters, dots between digits, or colons between hexadecimal digits are looked at in Python.

Phone numbers are found conservatively, since most runs of digits are something else: `+` with a country code in use and the
length of E.164, or North American numbers with separators and a valid area code; 555-01XX is kept for fiction and stays.
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
MAY_HOLD = r"[A-Za-z0-9_%+-]@[A-Za-z0-9]|\d\.\d{1,3}\.\d{1,3}\.\d|[23][0-9A-Fa-f]{3}:"

PHONE = re.compile(
    r"(?<![\w+@#$%&=*/.,;~^-])(?<!\d )"  # not inside of a number or a word
    r"(?:(?P<plus>\+[1-9](?:[ .()-]{0,2}\d){6,14})"
    r"|(?P<nanp>(?:1[-. ])?(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d(?P<mark>[-. ]))[2-9]\d\d(?P<last>[-. ])\d{4}))"
    r"(?![\w@%/+=*]|[-.,:]\w|[ ]\d)"
)
PHONE_MAY_HOLD = r"\+[1-9][ .()-]{0,2}\d|[2-9]\d\d[-. )] ?[2-9]\d\d[-. ]\d{4}"
CALLED = re.compile(
    r"\b(?:tel(?:ephone|\.)?|phones?|call|fax|mobile|cell|whatsapp|dial|sms|hotline)\b", re.IGNORECASE
)
NUMBERED = re.compile(
    r"\b(?:isbn|issn|doi|arxiv|pmid|oid|uuid|version|bug|issue|order|serial|part|ticket|ref|id|no)\b[\W_]*[\w.-]*[\W_]*$",
    re.IGNORECASE,
)
"""What stands right before a number of another kind."""
_CODES = """
1 7 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 81 82 84 86 90
91 92 93 94 95 98 211 212 213 216 218 220 221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239
240 241 242 243 244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 268 269
290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 376 377 378 380 381 382 383 385
386 387 389 420 421 423 500 501 502 503 504 505 506 507 508 509 590 591 592 593 594 595 596 597 598 599 670 672 673
674 675 676 677 678 679 680 681 682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880 881
882 883 886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 995 996 998"""
COUNTRY_CODES = frozenset(_CODES.split())
"""ITU-T E.164, list of assigned country codes; no code is the beginning of another."""


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


def scrub_phones_text(text: str) -> tuple[str, Counter[str]]:
    """The text without phone numbers, and how many were replaced: `phone`."""
    counts: Counter[str] = Counter()

    def phone(match: re.Match[str]) -> str:
        if not _is_phone(match):
            return match.group()
        counts["phone"] += 1
        return "<PHONE>"

    return PHONE.sub(phone, text), counts


def _is_phone(match: re.Match[str]) -> bool:
    found, start = match.group(), match.start()
    line = match.string[max(match.string.rfind("\n", 0, start) + 1, start - 40) : start]
    if NUMBERED.search(line):
        return False
    digits = re.sub(r"\D", "", found)
    named = CALLED.search(line) is not None
    if match["plus"] is None:
        national = digits[-10:]
        if match["mark"] not in (None, match["last"]):
            return False
        if match["last"] != "-" and match["mark"] is not None and not named:
            return False  # columns of numbers have spaces, decimals have dots
        return _is_nanp(national)
    if len(digits) > 15 or not any(digits[:length] in COUNTRY_CODES for length in (1, 2, 3)):
        return False
    if digits[0] == "1":
        return len(digits) == 11 and _is_nanp(digits[1:]) and (named or found != "+" + digits)
    separated = re.fullmatch(r"\+\d{1,4}(?:[ .-]?\(\d{1,5}\)[ .-]?\d{1,8})?(?:[ .-]\d{1,8}){0,6}", found)
    if separated is None or found == "+" + digits:
        return named and len(digits) >= 9  # "+4512345678" may be a number, or the line that a diff adds
    return len(digits) >= 8 and (named or found.count(".") == 0 or found.count(".") > 2)


def _is_nanp(national: str) -> bool:
    """Area code and exchange of the North American plan: [2-9]XX, no N11, no 555-01XX."""
    return (
        all(national[k] in "23456789" and national[k + 1 : k + 3] != "11" for k in (0, 3))
        and national[3:8] != "55501"
    )


def scrub(text: pa.Array, *, phones: bool = False) -> tuple[pa.Array, Counter[str]]:
    """The column without addresses, with `phones` without phone numbers too, and the totals by kind."""
    suspects = pc.match_substring_regex(text, f"{MAY_HOLD}|{PHONE_MAY_HOLD}" if phones else MAY_HOLD)
    total: Counter[str] = Counter()
    replaced = []
    for value in pc.filter(text, suspects).to_pylist():
        clean, counts = scrub_text(value)
        if phones:
            clean, more = scrub_phones_text(clean)
            counts += more
        replaced.append(clean)
        total += counts
    if not total:
        return text, total
    # `replace_with_mask` takes the replacements one by one where the mask is true.
    return pc.replace_with_mask(text, suspects, pa.array(replaced, text.type)), total
