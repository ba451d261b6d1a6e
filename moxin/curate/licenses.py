"""Licences as SPDX expressions, from what lies in a folder of source code and in a file's head. Empty means not known.

A text is a licence only if it holds the licence's own distinctive words; a name in a README proves nothing. Where a folder
holds several licences, the expression says AND unless the package's metadata joins the same ones otherwise: whoever may
use the text under all of them may use it.
"""

import json
import re
import tomllib
from collections.abc import Mapping

HEAD_CHARS = 2000
TEXT_NAMES = re.compile(r"(licen[cs]e|copying|unlicense)(s|[-._].*)?", re.IGNORECASE)
METADATA_NAMES = frozenset(
    ("pyproject.toml", "Cargo.toml", "package.json", "composer.json", "setup.cfg", "DESCRIPTION")
)
_GRANT = "permission is hereby granted free of charge to any person obtaining a copy of this software"
_ISC = "permission to use copy modify and or distribute this software for any purpose with or without fee is hereby granted"
_BSD = "redistribution and use in source and binary forms with or without modification are permitted provided that"
# Every group of words before the bar is in the licence, none behind it: words as `_words` leaves them.
_RULES = """
BUSL-1.1: business source license 1.1
Apache-2.0: apache license version 2.0 january 2004
Apache-2.0: licensed under the apache license version 2.0 the license you may not use | version 2.0 january 2004
AGPL-3.0-only: gnu affero general public license version 3 19 november 2007
LGPL-3.0-only: gnu lesser general public license version 3 29 june 2007
LGPL-2.1-only: gnu lesser general public license version 2.1 february 1999
LGPL-2.0-only: gnu library general public license version 2 june 1991
GPL-3.0-only: gnu general public license version 3 29 june 2007
GPL-2.0-only: gnu general public license version 2 june 1991
MPL-2.0: mozilla public license version 2.0; covered software
MPL-1.1: mozilla public license version 1.1; covered code
EPL-2.0: eclipse public license v 2.0; recipient's
EPL-1.0: eclipse public license v 1.0; recipient's
EUPL-1.2: european union public licence v. 1.2; the licensor
CDDL-1.0: common development and distribution license cddl version 1.0
CC0-1.0: cc0 1.0 universal; affirmer
CC-BY-4.0: creative commons attribution 4.0 international public license
CC-BY-SA-4.0: creative commons attribution sharealike 4.0 international public license
CC-BY-NC-4.0: creative commons attribution noncommercial 4.0 international public license
CC-BY-NC-SA-4.0: creative commons attribution noncommercial sharealike 4.0 international public license
Unlicense: this is free and unencumbered software released into the public domain
BSL-1.0: boost software license version 1.0 august 17th 2003
BlueOak-1.0.0: blue oak model license; version 1.0.0
WTFPL: do what the fuck you want to public license
OFL-1.1: sil open font license version 1.1
Artistic-2.0: the artistic license 2.0
PSF-2.0: python software foundation license version 2
Zlib: in no event will the authors be held liable for any damages; altered source versions must be plainly marked
PostgreSQL: for any purpose without fee and without a written agreement is hereby granted
JSON: GRANT; shall be used for good not evil
NCSA: GRANT; redistributions of source code must retain
X11: GRANT; except as contained in this notice the name | redistributions of source code; good not evil
MIT: GRANT; above copyright notice and this permission notice | redistributions of source; good not evil; except as contained
MIT-0: GRANT | above copyright notice and this permission notice; redistributions of source code; good not evil
ISC: ISC; provided that the above copyright notice and this permission notice appear
0BSD: ISC | provided that the above copyright notice and this permission notice appear
BSD-4-Clause: BSD; all advertising materials mentioning features
BSD-3-Clause: BSD; neither the name; endorse or promote | all advertising materials mentioning features
BSD-2-Clause: BSD; redistributions in binary form must reproduce | endorse or promote; all advertising materials
"""
_PLACES = {"GRANT": _GRANT, "ISC": _ISC, "BSD": _BSD}


def _parsed(line: str) -> tuple[str, list[str], list[str]]:
    name, _, words = line.partition(": ")
    holds, _, lacks = words.partition(" | ")
    return (
        name,
        [_PLACES.get(part, part) for part in holds.split("; ")],
        [part for part in lacks.split("; ") if part],
    )


_LICENSES = [_parsed(line) for line in _RULES.strip().splitlines()]
_RESTRICTED = ("commons clause", "business source license", "for non commercial use only")
"""Words that take back what a licence beside them gives."""
_MORE_NAMES = """GPL-2.0-or-later GPL-3.0-or-later LGPL-2.1-or-later LGPL-3.0-or-later AGPL-3.0-or-later
CC-BY-3.0 CC-BY-SA-3.0 Python-2.0"""
NAMES = {name.lower(): name for name in (*(name for name, _, _ in _LICENSES), *_MORE_NAMES.split())}
for _old in ("GPL-2.0", "GPL-3.0", "LGPL-2.1", "LGPL-3.0", "AGPL-3.0"):  # names that SPDX has given up
    NAMES |= {_old.lower(): f"{_old}-only", f"{_old.lower()}+": f"{_old}-or-later"}

_TAG = re.compile(r"SPDX-License-Identifier:[ \t]*([^\r\n*]+)")
_TOKEN = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")
_OPERATORS = ("AND", "OR", "WITH")


def of_header(text: str) -> str:
    """What the SPDX tags in the first lines of a file say; several are joined with AND."""
    found = [expression(tag.strip(" \t-/\"'>#;{}%")) for tag in _TAG.findall(text[:HEAD_CHARS])]
    return _joined(found) if all(found) else ""


def expression(text: str) -> str:
    """`text` as an SPDX expression with the usual spelling of names; empty where it is none, or names what is not known."""
    text = re.sub(r"(?<=[\w.+])/(?=\w)", " OR ", text.strip())  # how Cargo used to write it
    tokens, depth, wants_name, after_with = [], 0, True, False
    if _TOKEN.sub("", text).strip():
        return ""
    for token in _TOKEN.findall(text):
        is_operator = token.upper() in _OPERATORS
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif not is_operator and not after_with and token.lower() not in NAMES:
            return ""
        if (token == "(" or not (is_operator or token == ")")) != wants_name or depth < 0:
            return ""
        wants_name = is_operator or token == "("
        tokens.append(
            token.upper() if is_operator else token if after_with else NAMES.get(token.lower(), token)
        )
        after_with = token.upper() == "WITH"
    return "" if depth or wants_name else " ".join(tokens).replace("( ", "(").replace(" )", ")")


def of_text(text: str) -> list[str]:
    """The licences whose own words a text holds, in the table's order; none where something takes them back."""
    words = _words(text)
    found = [
        name
        for name, holds, lacks in _LICENSES
        if all(part in words for part in holds) and not any(part in words for part in lacks)
    ]
    if "BUSL-1.1" in found:
        return ["BUSL-1.1"]
    return [] if any(part in words for part in _RESTRICTED) else list(dict.fromkeys(found))


def of_folder(files: Mapping[str, bytes]) -> str | None:
    """The licence that the files of one folder state, by their names; None where none of them says anything.

    Empty where a licence's text is there and one of them is not known.
    """
    texts = [
        of_text(data.decode("utf-8", "replace")) for name, data in files.items() if TEXT_NAMES.fullmatch(name)
    ]
    stated = [of_metadata(name, data.decode("utf-8", "replace")) for name, data in files.items()]
    named = next((value for value in stated if value), None)
    if not texts:
        return named if named is not None else next((value for value in stated if value is not None), None)
    found = list(dict.fromkeys(name for text in texts for name in text))
    if any(name.startswith("LGPL") for name in found):  # its text refers to the GPL's, which lies beside it
        found = [name for name in found if not name.startswith("GPL")]
    if not all(texts):
        return ""
    if named and set(found) <= {token.replace("-or-later", "-only") for token in _TOKEN.findall(named)}:
        return named
    return _joined(found)


def of_metadata(name: str, text: str) -> str | None:
    """The licence in a package's metadata, None where the file says nothing of one, empty where it is not known."""
    try:
        value = _stated(name, text)
    except (ValueError, TypeError, AttributeError, KeyError):  # no TOML or JSON, or of another shape
        return None
    return None if value is None else expression(value)


def _stated(name: str, text: str) -> str | None:
    if name == "pyproject.toml":
        value = tomllib.loads(text).get("project", {}).get("license")
        return value.get("text") if isinstance(value, dict) else value
    if name == "Cargo.toml":
        value = tomllib.loads(text).get("package", {}).get("license")
        return value if isinstance(value, str) else None
    if name in ("package.json", "composer.json"):
        value = json.loads(text).get("license")
        if isinstance(value, list):
            return " OR ".join(value)
        return value.get("type") if isinstance(value, dict) else value
    if name in ("setup.cfg", "DESCRIPTION"):
        found = re.search(r"^license[ \t]*[=:][ \t]*(\S.*)$", text, re.IGNORECASE | re.MULTILINE)
        return found[1].strip() if found else None
    return None


def _joined(names: list[str]) -> str:
    distinct = list(dict.fromkeys(names))
    return " AND ".join(f"({n})" if " OR " in n and len(distinct) > 1 else n for n in distinct)


def _words(text: str) -> str:
    """Words with single spaces between them: comment marks, punctuation and line breaks say nothing."""
    return " ".join(re.sub(r"[^\w.'’]+|(?<!\w)[.'’]+|[.'’]+(?!\w)", " ", text.lower()).split())
