"""Documents by their address: the same page under several spellings of its URL, and blocklists.

`normalise` follows RFC 3986 (appendix B, §5.2.4, §6.2.2, §6.2.3) and drops what does not change the page. Which document of
an address stays is decided as for texts: `keys`, then `moxin.curate.repeats.write_hashes` and `first_in_range`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kernels import spans
from moxin import storage
from moxin.arrow import utf8_buffers

_TRACKING = """__hsfp __hssc __hstc __s _bta_c _bta_tid _ga _gl _hsenc _hsmi _ke _openstat dclid dm_i ef_id fb_action_ids
fb_action_types fb_ref fb_source fbclid gad_source gbraid gclid gclsrc hsctatracking icid igsh igshid li_fat_id mc_cid mc_eid
mkt_tok ml_subscriber ml_subscriber_hash msclkid oft_c oft_ck oft_d oft_id oft_ids oft_k oft_lk oft_sk oly_anon_id oly_enc_id
rb_clickid s_cid srsltid ttclid twclid vero_conv vero_id wbraid wickedid wprov wt.mc_id xtor yclid ysclid"""
TRACKING = frozenset(_TRACKING.split())
"""Query parameters, in lower case, that tell where a visitor came from: those that Firefox and Brave strip, and the like."""
TRACKING_PREFIXES = ("utm_", "hsa_", "mtm_", "pk_", "piwik_", "matomo_")
PORTS = {"http": "80", "https": "443", "ftp": "21", "ws": "80", "wss": "443"}
_PARTS = re.compile(r"(?:([a-z][a-z0-9+.\-]*):)?(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?", re.I | re.S)
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_FOREIGN = re.compile(r"[^!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]|%(?![0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_WORD = re.compile(r"[^\W_]+")


def normalise(url: str) -> str:
    """One spelling for URLs that mean the same page; applied again it changes nothing, and it raises nothing.

    Scheme and host in lower case, hosts in Unicode instead of punycode; the scheme's own port, fragment, tracking
    parameters, an empty query and slashes at the path's end dropped; dot segments resolved; escapes of unreserved characters
    undone, all others with capital digits, and what must be escaped is. Kept as they are: the order of parameters, `http`
    against `https`, "www.", a user's name. What has no host ("mailto:", "a/b") only has its escapes and scheme put right.
    """
    url = "".join(char for char in url.strip() if char not in "\t\n\r")  # as browsers do (WHATWG URL, 4.4)
    match = _PARTS.fullmatch(url)
    assert match is not None  # all parts may be empty
    scheme, authority, path, query = match.groups()
    scheme = (scheme or "").lower()
    head = f"{scheme}:" if scheme else ""
    path = _escapes(path)
    if not scheme and authority is None and re.match(r"[a-z][a-z0-9+.\-]*:", path, re.I):
        return normalise(path + url[len(match[3]) :])  # the scheme was escaped
    if authority is not None:
        user, at, place = authority.rpartition("@")
        # Of what is no host and port, such as "a:b:80", nothing is taken off.
        with_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]*)", place)
        host, port = with_port.groups() if with_port else (place, "")
        port = port.lstrip("0")
        shown = f":{port}" if port and port != PORTS.get(scheme) else ""
        head += f"//{_escapes(user)}{at}{_host(host)}{shown}"
        path = _resolve(path).rstrip("/") or "/"
    pairs = [] if query is None else [_escapes(pair) for pair in query.split("&")]
    pairs = [pair for pair in pairs if pair and not _tracks(pair)]
    return head + path + ("?" + "&".join(pairs) if pairs else "")


def _tracks(pair: str) -> bool:
    name = pair.partition("=")[0].lower()
    return name in TRACKING or name.startswith(TRACKING_PREFIXES)


def _escapes(text: str) -> str:
    """RFC 3986, §6.2.2.1 and §6.2.2.2; a character outside the RFC's alphabet becomes the escapes of its UTF-8."""

    def put_right(match: re.Match[str]) -> str:
        char = chr(int(match[1], 16))
        return char if char in _UNRESERVED else match[0].upper()

    text = _FOREIGN.sub(
        lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), text
    )
    return _ESCAPE.sub(put_right, text)


def _host(host: str) -> str:
    plain = unquote(host)
    if plain != host and re.search(r"[\s/?#@:%\[\]\\]", plain):
        plain = host  # without its escapes it would be another URL
    labels = plain.lower().split(".")
    return ".".join(_unicode(label) if label.startswith("xn--") else label for label in labels)


def _unicode(label: str) -> str:
    """A label in punycode (RFC 3492) as the Unicode it stands for, where that is sound."""
    try:
        decoded = label[4:].encode("ascii").decode("punycode").lower()
    except UnicodeError:
        return label
    # Only what is a letter or the like: a decoded "/" or "@" would be another URL.
    sound = (
        decoded and not decoded.startswith("xn--") and all(char in "-" or char.isalnum() for char in decoded)
    )
    return decoded if sound and not decoded.isascii() else label


def _resolve(path: str) -> str:
    """An absolute path without dot segments (RFC 3986, §5.2.4)."""
    out: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            out[-1:] = []
        elif segment != ".":
            out.append(segment)
    if segments and segments[-1] in (".", ".."):
        out.append("")
    return "/" + "/".join(out)


def keys(column: pa.Array | pa.ChunkedArray) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """128-bit hashes of normalised URLs, uint64[n, 2], and which rows have one: null and blank URLs repeat nothing."""
    urls = pa.array([normalise(url) if url else "" for url in column.to_pylist()], pa.large_string())
    data, offsets = utf8_buffers(urls)
    hashes, n_chars = spans.hashes(data, offsets[:-1], offsets[1:], spans.RAW)
    return hashes, n_chars > 0


@dataclass(frozen=True)
class Blocklists:
    """Which addresses are unwanted, as RefinedWeb has it (arXiv 2306.01116, G.1) and DCLM's `url_substring_filter` does it.

    Domains and URLs are whole addresses; words are looked for in the URL in lower case, with its escapes undone.
    """

    domains: frozenset[str] = frozenset()
    """Hosts, exactly: "example.com" does not block "www.example.com"."""
    urls: frozenset[str] = frozenset()
    """Normalised, without scheme."""
    strict: frozenset[str] = frozenset()
    """Block wherever they stand, also inside words and with "-" or "." in between."""
    hard: frozenset[str] = frozenset()
    """Block as whole words: runs of letters and digits; of an entry with several, one after the other."""
    soft: frozenset[str] = frozenset()
    """Whole words that block when there are `min_soft` different ones."""
    min_soft: int = 2

    def reason(self, url: str | None) -> tuple[str, str]:
        """Why the address is blocked and by which entry; two empty strings where it is not, or there is none."""
        if not url:
            return "", ""
        address = normalise(url)
        match = _PARTS.fullmatch(address)
        assert match is not None
        host = re.sub(r":\d+$", "", (match[2] or "").rpartition("@")[2])
        if host in self.domains:
            return "blocked_domain", host
        if (bare := _bare(address)) in self.urls:
            return "blocked_url", bare
        text = unquote(address).lower()
        joined = text.replace("-", "").replace(".", "")
        if found := sorted(word for word in self.strict if word in joined):
            return "blocked_strict_word", found[0]
        words = f" {' '.join(_WORD.findall(text))} "
        if found := sorted(word for word in self.hard if f" {word} " in words):
            return "blocked_hard_word", found[0]
        found = sorted(word for word in self.soft if f" {word} " in words)
        if found and len(found) >= self.min_soft:
            return "blocked_soft_words", " ".join(found)
        return "", ""


def _bare(address: str) -> str:
    return address.partition("://")[2] or address


def read_blocklists(
    domains: Sequence[str] = (),
    urls: Sequence[str] = (),
    strict: Sequence[str] = (),
    hard: Sequence[str] = (),
    soft: Sequence[str] = (),
    min_soft: int = 2,
) -> Blocklists:
    """Blocklists from text files (UTF-8, an entry per line; blank lines and those that begin with "#" are none).

    Raises `ValueError` for a file without entries, an entry that could not block anything, or `min_soft` < 1.
    """
    if min_soft < 1:
        raise ValueError(f"min_soft={min_soft}: set it to 1 or more (RefinedWeb has 2)")

    def words(entry: str) -> str:
        return " ".join(_WORD.findall(entry.lower()))

    return Blocklists(
        frozenset(_host(entry) for entry in _entries(domains)),
        frozenset(
            _bare(normalise(entry if "://" in entry else f"http://{entry}")) for entry in _entries(urls)
        ),
        _checked(entry.lower().replace("-", "").replace(".", "") for entry in _entries(strict)),
        _checked(words(entry) for entry in _entries(hard)),
        _checked(words(entry) for entry in _entries(soft)),
        min_soft,
    )


def _checked(entries: Iterable[str]) -> frozenset[str]:
    found = frozenset(entries)
    if "" in found:
        raise ValueError(
            "a blocklist has an entry without a letter or digit, which would block all or nothing; delete it"
        )
    return found


def _entries(files: Sequence[str]) -> list[str]:
    found = []
    for url in files:
        lines = [line.strip() for line in storage.read_text(url).removeprefix("\ufeff").splitlines()]
        entries = [line for line in lines if line and not line.startswith("#")]
        if not entries:
            raise ValueError(f"{url} has no entries: give a text file with one per line, or leave it out")
        found += entries
    return found
