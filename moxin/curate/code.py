"""Which files of code stay: the rules of The Stack and StarCoder as data that one can read and print.

Kocetkov et al. 2022 (arXiv 2211.15533), Li et al. 2023 (2305.06161), Lozhkov et al. 2024 (2402.19173, appendix on filters).
Signals are measured once, rules decide, the first that holds is the reason. A signal that has no meaning for a file (the
comments of a language whose syntax is not known here) is NaN, which no rule removes. Tags (`test`, `config`) remove nothing.
"""

import functools
import html.parser
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from license_expression import ExpressionError, LicenseSymbol, LicenseWithExceptionSymbol, get_spdx_licensing
from numba import njit
from numpy.typing import NDArray

from kernels import text as text_kernels
from kernels.text import ALPHA, N_CODE_POINTS, SPACE, next_code_point
from moxin.arrow import utf8_buffers

OFF = float("nan")
_EXTENSIONS = """python py pyi pyw;c c h;cpp cc cpp cxx hpp hh hxx;java java;javascript js jsx mjs cjs
typescript ts tsx;go go;rust rs;zig zig;dart dart;lisp lisp el scm
ruby rb;php php;csharp cs;kotlin kt kts;scala scala;swift swift;shell sh bash zsh;perl pl pm;lua lua;r r;julia jl
haskell hs;sql sql;css css scss less;html html htm xhtml;xml xml xsd xsl svg;json json jsonl geojson;yaml yaml yml
markdown md markdown;rst rst;text txt;tex tex;csv csv tsv;toml toml ini cfg;makefile mk makefile"""
LANGUAGES = {ending: row.split()[0] for row in re.split("[;\n]", _EXTENSIONS) for ending in row.split()[1:]}
"""Language by file ending, in lower case and without its dot."""
MARKUP, DATA = ("html", "xml", "markdown", "rst", "text", "tex"), ("json", "yaml", "csv", "toml")
_C = r"//[^\n]*|/\*.*?(?:\*/|\Z)"
_HASH = r"(?<![\w$\\{&])\#[^\n]*"
_STRINGS = r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'"
_DOCSTRING = r"(?:(?<=\n)|\A)[ \t]*[rRuU]?(?P<doc>\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z))"
_TRIPLE = r"\"\"\".*?(?:\"\"\"|\Z)|'''.*?(?:'''|\Z)"


def _syntax(comments: str, others: str = _STRINGS) -> re.Pattern[str]:
    return re.compile(f"(?P<comment>{comments})|{others}", re.DOTALL)


SYNTAX: dict[str, re.Pattern[str]] = {
    "python": _syntax(r"\#[^\n]*", f"{_DOCSTRING}|{_TRIPLE}|{_STRINGS}"),
    **dict.fromkeys(("c", "cpp", "java", "csharp", "kotlin", "scala", "swift", "dart"), _syntax(_C)),
    **dict.fromkeys(("javascript", "typescript", "go"), _syntax(_C, _STRINGS + r"|`(?:[^`\\]|\\.)*`")),
    # 'a is a lifetime: only characters are quoted by one mark
    "rust": _syntax(_C, r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\\n]|\\.[^'\n]{0,8})'"),
    **{"zig": _syntax(r"//[^\n]*"), "css": _syntax(r"/\*.*?(?:\*/|\Z)")},
    "php": _syntax(f"{_C}|{_HASH}"),
    **dict.fromkeys(("ruby", "shell", "perl", "r", "makefile"), _syntax(_HASH)),
    "julia": _syntax(rf"\#=.*?(?:=\#|\Z)|{_HASH}", f"{_TRIPLE}|{_STRINGS}"),
    "lua": _syntax(r"--\[\[.*?(?:\]\]|\Z)|--[^\n]*"),
    "haskell": _syntax(r"\{-.*?(?:-\}|\Z)|--[^\n]*", r"\"(?:[^\"\\\n]|\\.)*\""),
    "sql": _syntax(r"--[^\n]*|/\*.*?(?:\*/|\Z)"),
    "lisp": _syntax(r";[^\n]*", r"\"(?:[^\"\\]|\\.)*\""),
}
"""Comments, and the strings inside of which a comment's mark is none."""


@dataclass(frozen=True)
class Rule:
    """Removes a file where `signal op threshold` holds."""

    reason: str
    signal: str
    op: str
    threshold: float
    source: str
    languages: tuple[str, ...] = ()
    """Languages it is for; () for all."""
    overrides: Mapping[str, float] = field(default_factory=dict)
    """Thresholds of single languages; `OFF` for none."""

    def threshold_for(self, language: str) -> float:
        if self.languages and language not in self.languages:
            return OFF
        return self.overrides.get(language, self.threshold)


_OPEN = dict.fromkeys((*MARKUP, *DATA), OFF)
_STACK, _STARCODER, _STACK2 = "The Stack", "StarCoder", "The Stack v2"
RULES = (
    Rule("empty", "n_chars", "<", 1, _STACK),
    Rule("license", "license_allowed", "<", 1, "permissive licences: The Stack"),
    Rule("lock_file", "lock_file", ">", 0, "go-enry: IsGenerated"),
    Rule("generated", "generated", ">", 0, "go-enry: IsGenerated"),
    Rule("minified", "minified", ">", 0, "go-enry: IsGenerated"),
    Rule("xml", "xml_head", ">", 0, _STARCODER, overrides={"xml": OFF}),
    Rule("long_line", "max_line_chars", ">", 1000, _STACK, overrides={**_OPEN, "markdown": 10_000}),
    Rule("long_lines", "mean_line_chars", ">", 100, _STACK, overrides={**_OPEN, "toml": 100}),
    Rule("few_alphanumerics", "alnum_share", "<", 0.25, _STACK, overrides={"csv": OFF}),
    Rule("few_letters", "alpha_share", "<", 0.25, _STARCODER, overrides=dict.fromkeys(DATA, OFF)),
    Rule("encoded_run", "longest_encoded_chars", ">", 1024, _STACK2),
    Rule("encoded", "encoded_share", ">", 0.5, _STACK2),
    Rule("data", "literal_share", ">", 0.75, "data-prep-kit: few assignments", overrides=_OPEN),
    Rule("too_small", "n_chars", "<", 50, _STARCODER, ("json", "yaml")),
    Rule("too_big", "n_chars", ">", 5000, _STARCODER, ("json", "yaml")),
    Rule("little_visible_text", "visible_share", "<", 0.2, _STARCODER, ("html",)),
    Rule("little_visible_text", "visible_chars", "<", 100, _STARCODER, ("html",)),
    Rule("few_comments", "comment_share", "<", 0.01, _STARCODER),
    Rule("mostly_comments", "comment_share", ">", 0.80, _STARCODER),
    Rule("too_many_lines", "n_lines", ">", 20_000, "NeMo Curator", overrides=_OPEN),
)
SHARES = frozenset(
    (
        "license_allowed",
        "lock_file",
        "generated",
        "minified",
        "xml_head",
        "alnum_share",
        "alpha_share",
        "encoded_share",
    )
    + ("literal_share", "visible_share", "comment_share")
)
"""Signals from 0 to 1; the others are numbers of characters and lines."""
OPERATORS = {"<": operator.lt, ">": operator.gt}
HEAD_CHARS, XML_HEAD_CHARS, DATA_CHARS = 1000, 100, 1000
"""Files of fewer than DATA_CHARS are not judged by their literals: three lines of code may be one string."""
GENERATED = (
    r"(?i)\bauto-?generated\b|automatically[ -]generated|@generated\b|generated by the protocol buffer compiler"
    r"|autogenerated by thrift|generated (?:by|from|with|using) (?:[\w./\\-]+ by )?(?:antlr|bison|flex|ragel|swig|cython"
    r"|protoc|jison|peg|openapi|swagger|javacc|yacc|lemon|f2py|qt|emscripten|gperf|thrift|flatc|sqlc|mockgen|xsd)"
    r"|code generated .{1,80} do not edit|(?:generated|machine).{0,160}do not (?:edit|modify)"
    r"|a bison parser, made by gnu bison|do not (?:edit|modify).{0,80}generated"
    r"|the following was generated by|created by coffeescript"
)
"""What generators write into a file's head. "Generated" alone is a word of the trade and is no sign."""
_LOCKS = """package-lock.json npm-shrinkwrap.json yarn.lock pnpm-lock.yaml bun.lock composer.lock poetry.lock pipfile.lock
uv.lock pdm.lock cargo.lock gemfile.lock go.sum mix.lock packages.lock.json flake.lock podfile.lock pubspec.lock
conan.lock"""
LOCK_FILES = frozenset(_LOCKS.split())
GENERATED_NAMES = re.compile(
    r"(?i)(?:_pb2(?:_grpc)?\.pyi?|\.pb\.(?:go|cc|h)|\.g\.dart|\.designer\.cs|[.-]min\.(?:js|css))$"
)
ENCODED = re.compile(
    r"[A-Za-z0-9+/\n=]{64,}|(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}|(?:\\u[0-9a-fA-F]{4}){8,}"
)
MAY_BE_ENCODED = r"[A-Za-z0-9+/\n=]{64}|(?:[0-9a-fA-F]{2}[,\s]*(?:0x|\\x)?){8}|(?:\\u[0-9a-fA-F]{4}){8}"
"""Base64, hexadecimal and Unicode escapes, as in The Stack v2's filters."""
LITERALS = re.compile(
    rf"{_STRINGS}|(?<![\w.])[-+]?(?:0[xX][0-9a-fA-F]+|\d[\d_]*\.?\d*(?:[eE][-+]?\d+)?)\w{{0,3}}\b"
)
TEST_PATH = re.compile(
    r"(?i)(?:^|/)(?:tests?|spec|specs|__tests__|testing|testdata)/|(?:^|/)test_[^/]*$|[._-](?:test|spec|tests)\.\w+$"
)
CONFIG_PATH = re.compile(
    r"(?i)(?:^|/)(?:\.[a-z][\w.-]*|setup\.(?:py|cfg)|conf(?:ig)?\.\w+|[\w.-]+\.config\.\w+|settings\.\w+|webpack[\w.]*\.js"
    r"|dockerfile|makefile|cmakelists\.txt|[\w-]+\.(?:ini|cfg|conf|toml|properties))$"
)


def describe(rules: Sequence[Rule] = RULES) -> list[tuple[str, str, str, float, str, str, str]]:
    """Every rule in its order: reason, signal, comparison, threshold, languages, their overrides, source."""
    rows = []
    for rule in rules:
        special = ", ".join(f"{k}: {'off' if v != v else f'{v:g}'}" for k, v in rule.overrides.items())
        languages = ", ".join(rule.languages) or "all"
        rows.append((rule.reason, rule.signal, rule.op, rule.threshold, languages, special, rule.source))
    return rows


def language_of(path: str) -> str:
    """The language by a file's ending; "" where it is not known."""
    name = PurePosixPath(path.lower()).name
    return LANGUAGES.get(name.rpartition(".")[2], "")


def tags_of(path: str) -> tuple[str, ...]:
    """`test` and `config` as its path suggests: heuristics, nothing is removed by them."""
    return tuple(name for name, sign in (("test", TEST_PATH), ("config", CONFIG_PATH)) if sign.search(path))


@njit(nogil=True, cache=True)
def _shares(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], flags: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Alphabetic and white-space shares of each document's characters, and its lines: float64[n_docs, 3]."""
    out = np.zeros((len(offsets) - 1, 3))
    for doc in range(len(out)):
        at, n_chars = offsets[doc], 0
        while at < offsets[doc + 1]:
            point, at = next_code_point(data, at)
            flag = flags[point] if point < N_CODE_POINTS else np.uint8(0)
            n_chars += 1
            out[doc, 0] += flag & ALPHA != 0
            out[doc, 1] += flag & SPACE != 0
            out[doc, 2] += point == 10
        out[doc, 2] += n_chars > 0 and data[offsets[doc + 1] - 1] != 10
        out[doc, :2] /= max(n_chars, 1)
    return out


def comment_share(text: str, language: str) -> float:
    """Share of the characters that are in comments or docstrings; NaN where the syntax of the language is not known."""
    syntax = SYNTAX.get(language)
    if syntax is None or not text:
        return OFF
    spans = (match.span() for match in syntax.finditer(text) if match.lastgroup in ("comment", "doc"))
    return sum(end - start for start, end in spans) / len(text)


class _Visible(html.parser.HTMLParser):
    HIDDEN = ("script", "style", "template", "noscript")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(self.hidden - (tag in self.HIDDEN), 0)

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.pieces.append(data)


def visible_text(page: str) -> str:
    """The text of an HTML page without markup, scripts and styles, its white space made single spaces."""
    (parser := _Visible()).feed(page)
    parser.close()
    return " ".join(" ".join(parser.pieces).split())


def signals(text: pa.Array, paths: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """What the rules look at, by name, float64[n] each, but `license_allowed`; NaN where a signal has no meaning."""
    data, offsets = utf8_buffers(text)
    table = text_kernels.signals(data, offsets)
    shares = _shares(data, offsets, text_kernels.unicode_tables()[0])
    column = {name: table[:, k] for k, name in enumerate(text_kernels.SIGNALS)}
    names = [PurePosixPath(path).name for path in paths]
    out = {
        "n_chars": column["n_chars"],
        "n_lines": shares[:, 2],
        "max_line_chars": column["max_line_length"],
        "mean_line_chars": column["mean_line_length"],
        "alnum_share": column["alnum_ratio"],
        "alpha_share": shares[:, 0],
        "lock_file": np.array([name.lower() in LOCK_FILES for name in names], float),
        "xml_head": _matches(pc.utf8_slice_codeunits(text, 0, XML_HEAD_CHARS), r"<\?xml version="),
    }
    named = np.array([GENERATED_NAMES.search(name) is not None for name in names], float)
    out["generated"] = np.maximum(
        named, _matches(pc.utf8_slice_codeunits(text, 0, HEAD_CHARS), f"(?s){GENERATED}")
    )
    languages = [language_of(path) for path in paths]
    scripts = np.isin(languages, ["javascript", "typescript", "css"])
    # Minifiers take the white space and the line ends; either may be scarce in what a person wrote, not both.
    out["minified"] = (scripts & (shares[:, 1] < 0.08) & (column["max_line_length"] > 500)).astype(float)
    for name in ("longest_encoded_chars", "encoded_share", "literal_share"):
        out[name] = np.zeros(len(text))
    for name in ("comment_share", "visible_share", "visible_chars"):
        out[name] = np.full(len(text), OFF)
    encoded = _matches(text, MAY_BE_ENCODED)
    for row, (document, language) in enumerate(zip(text.to_pylist(), languages, strict=True)):
        document = document or ""
        n_chars = max(len(document), 1)
        if encoded[row]:
            runs = [len(match.group()) for match in ENCODED.finditer(document)]
            out["longest_encoded_chars"][row] = max(runs, default=0)
            out["encoded_share"][row] = sum(runs) / n_chars
        out["comment_share"][row] = comment_share(document, language)
        if language not in _OPEN and n_chars >= DATA_CHARS:
            literal = sum(len(match.group()) for match in LITERALS.finditer(document))
            out["literal_share"][row] = literal / max(n_chars * (1 - shares[row, 1]), 1)
        if language == "html":
            visible = len(visible_text(document))
            out["visible_chars"][row], out["visible_share"][row] = visible, visible / n_chars
    return out


def _matches(text: pa.Array, pattern: str) -> NDArray[np.float64]:
    return (
        pc.fill_null(pc.match_substring_regex(text, pattern), False)
        .to_numpy(zero_copy_only=False)
        .astype(float)
    )


_PERMISSIVE = """0BSD AFL-1.1 AFL-1.2 AFL-2.0 AFL-2.1 AFL-3.0 Apache-1.0 Apache-1.1 Apache-2.0 Artistic-2.0 BlueOak-1.0.0
BSD-1-Clause BSD-2-Clause BSD-2-Clause-Patent BSD-2-Clause-Views BSD-3-Clause BSD-3-Clause-Attribution BSD-3-Clause-Clear
BSD-3-Clause-LBNL BSD-3-Clause-Modification BSD-4-Clause BSD-Source-Code BSL-1.0 CC0-1.0 CC-BY-3.0 CC-BY-4.0 ECL-1.0 ECL-2.0
EFL-2.0 Fair FSFAP FTL HPND ICU ImageMagick ISC Intel JSON Libpng libtiff MIT MIT-0 MIT-advertising MIT-CMU MIT-feh
MIT-Modern-Variant MITNFA MS-PL MulanPSL-1.0 MulanPSL-2.0 NCSA NTP OLDAP-2.8 OpenSSL PHP-3.0 PHP-3.01 PostgreSQL PSF-2.0
Python-2.0 Python-2.0.1 Ruby SGI-B-2.0 TCL Unicode-DFS-2015 Unicode-DFS-2016 Unicode-3.0 Unlicense UPL-1.0 Vim W3C WTFPL
X11 Xnet zlib zlib-acknowledgement Zlib ZPL-2.0 ZPL-2.1"""
PERMISSIVE = frozenset(name.lower() for name in _PERMISSIVE.split())
"""SPDX identifiers, in lower case, of licences that ask for no more than notice: after the Blue Oak Council's list."""


@functools.cache
def license_standing(expression: str) -> str:
    """`permissive`, `restricted` or `unknown` for an SPDX licence expression (SPDX 2.3, annex D).

    AND needs both, OR leaves the choice, and WITH only adds permissions, so that the licence itself decides. Unknown is what
    is empty, is no valid expression, or depends on an identifier that SPDX does not list (`LicenseRef-…`, NOASSERTION).
    """
    try:
        parsed = _licensing().parse(expression, validate=False)
    except ExpressionError:
        return "unknown"
    return _standing(parsed) if parsed is not None else "unknown"


def _standing(node: object) -> str:
    order = ("restricted", "unknown", "permissive")
    if isinstance(node, LicenseWithExceptionSymbol):
        return _standing(node.license_symbol)
    if isinstance(node, LicenseSymbol):
        if node.key.lower() in PERMISSIVE:
            return "permissive"
        return "restricted" if node.key in _licensing().known_symbols else "unknown"
    places = [order.index(_standing(part)) for part in node.args]  # type: ignore[attr-defined]
    return order[max(places) if type(node).__name__ == "OR" else min(places)]


_licensing = functools.cache(get_spdx_licensing)


class Verdicts(NamedTuple):
    """Of n files: the first rule that removes each and its numbers, "" where it stays; its tags, and what was measured."""

    reason: list[str]
    detail: list[str]
    tags: list[tuple[str, ...]]
    signals: dict[str, NDArray[np.float64]]


def judge(
    text: pa.Array,
    paths: Sequence[str],
    licenses: Sequence[str | None] | None = None,
    *,
    unknown_license: Literal["keep", "drop"] = "drop",
    rules: Sequence[Rule] = RULES,
) -> Verdicts:
    """Applies the rules to files with their paths and SPDX licence expressions; without `licenses` none is asked for."""
    if unknown_license not in ("keep", "drop"):
        raise ValueError(f"unknown_license = {unknown_license!r}: keep or drop")
    measured = signals(text, paths)
    measured["license_allowed"] = np.ones(len(text))
    if licenses is not None:
        allowed = ("permissive", "unknown") if unknown_license == "keep" else ("permissive",)
        measured["license_allowed"][:] = [license_standing(each or "") in allowed for each in licenses]
    reason, detail = [""] * len(text), [""] * len(text)
    languages = [language_of(path) for path in paths]
    for rule in reversed(rules):
        limits = np.array([rule.threshold_for(language) for language in languages])
        for row in np.flatnonzero(OPERATORS[rule.op](measured[rule.signal], limits)):
            reason[row] = rule.reason
            detail[row] = f"{rule.signal} {measured[rule.signal][row]:.4g} {rule.op} {limits[row]:g}"
    return Verdicts(reason, detail, [tags_of(path) for path in paths], measured)
