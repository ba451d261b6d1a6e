"""Source trees: which files are read, in which language, under which licence; and licences told from their own words."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from moxin.artifact import Artifact
from moxin.curate import licenses, reading, sources, trees
from moxin.recipe import SourceConfig

NO_WORLD = Artifact("world", "", "", {"files": {}})
MIT = """MIT License. Copyright (c) 2024 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction. The above copyright notice and this permission notice
shall be included in all copies or substantial portions of the Software.
"""
APACHE = "                         Apache License\n                   Version 2.0, January 2004\n"
BSD = """Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:
 * Redistributions in binary form must reproduce the above copyright notice."""
BSD3 = f"{BSD}\n * Neither the name of X nor the names of its contributors may be used to endorse or promote products."
GPL3 = "                    GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007\n"
LGPL3 = GPL3.replace("GNU", "GNU LESSER")
ISC = """Permission to use, copy, modify, and/or distribute this software
for any purpose with or without fee is hereby granted"""
CARGO = '[package]\nlicense = "MIT/Apache-2.0"'
UNKNOWN = "You may look at this code on Sundays."


def tree(path: Path, files: dict[str, str | bytes]) -> SourceConfig:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return SourceConfig("code", "tree", license="LicenseRef-Default", path=str(path))


def read(source: SourceConfig) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, quarantine = [], []
    for unit in sources.units((source,), NO_WORLD):
        for batch in reading.read(unit, source, quarantine):
            rows += batch.to_pylist()
    return rows, quarantine


def test_a_folder_of_repositories(tmp_path):
    source = tree(
        tmp_path,
        {
            "one/LICENSE": MIT,
            "one/src/deep/er/a.py": "print('é')\n",
            "one/src/b.cpp": "int main() {}\n",
            "one/Makefile": "all:\n",
            "one/README.md": "# prose",
            "one/data.json": "{}",
            "one/src/c.rs": "// SPDX-License-Identifier: apache-2.0 OR MIT\nfn main() {}\n",
            "one/contrib/COPYING": GPL3,
            "one/contrib/d.go": "package d\n",
            "one/.git/hooks/x.py": "no",
            "one/node_modules/x/index.js": "no",
            "one/web/Build/x.js": "no",
            "one/web/jquery.min.js": "no",
            "one/third_party/LICENSE": GPL3,
            "owner/two/package.json": '{"license": "ISC"}',
            "owner/two/index.ts": "let x = 1\n",
            "three/a.jl": "x = 1\n",
            "four/LICENSE.txt": UNKNOWN,
            "four/a.py": "x = 1\n",
            "five/empty.py": "",
            "five/large.py": "x" * (trees.FILE_BYTES + 1),
            "five/video.ts": b"\x47\x40\0\0binary",
            "five/latin.c": "// caf\xe9\n".encode("latin-1"),
            "five/wide.cs": "class É {}\n".encode("utf-16"),
        },
    )
    (tmp_path / "one/src/loop").symlink_to(tmp_path / "one")
    rows, quarantine = read(source)
    got = {row["id"]: (row["lang"], row["license"]) for row in rows}
    assert got == {
        "one/src/deep/er/a.py": ("python", "MIT"),
        "one/src/b.cpp": ("c++", "MIT"),
        "one/Makefile": ("makefile", "MIT"),
        "one/src/c.rs": ("rust", "Apache-2.0 OR MIT"),
        "one/contrib/d.go": ("go", "GPL-3.0-only"),
        "owner/two/index.ts": ("typescript", "ISC"),
        "three/a.jl": ("julia", "LicenseRef-Default"),
        "four/a.py": ("python", ""),
        "five/wide.cs": ("c#", "LicenseRef-Default"),
    }
    assert [row["id"] for row in rows] == sorted(got)
    repositories = {row["id"]: row["meta"] for row in rows}
    assert repositories["one/contrib/d.go"] == '{"repository": "one", "path": "contrib/d.go"}'
    assert repositories["owner/two/index.ts"] == '{"repository": "owner/two", "path": "index.ts"}'
    assert repositories["three/a.jl"] == '{"repository": "three", "path": "a.jl"}'
    assert next(row["url"] for row in rows if row["id"] == "one/contrib/d.go") == "one/contrib/d.go"
    assert next(row["text"] for row in rows if row["id"] == "five/wide.cs") == "class É {}\n"
    assert [(row["file"], row["error"].split(":")[0]) for row in quarantine] == [
        ("five/latin.c", "UnicodeDecodeError"), ("five/video.ts", "ValueError")
    ]  # fmt: skip


def test_one_repository_and_its_fingerprint(tmp_path):
    source = tree(tmp_path, {"pyproject.toml": '[project]\nlicense = "MIT"\n', "a.py": "x", "pkg/b.py": "y"})
    rows, _ = read(source)
    assert [(row["id"], row["license"], row["meta"]) for row in rows] == [
        ("a.py", "MIT", '{"repository": "", "path": "a.py"}'),
        ("pkg/b.py", "MIT", '{"repository": "", "path": "pkg/b.py"}'),
    ]
    before = sources.fingerprint(source)
    (tmp_path / "LICENSE").write_text(GPL3)
    assert sources.fingerprint(source) != before, "a licence is part of what is read"
    assert {row["license"] for row in read(source)[0]} == {"GPL-3.0-only"}
    with pytest.raises(ValueError, match="holds none of source code"):
        sources.check(SourceConfig("code", "tree", path=str(tmp_path / "LICENSE")))


def test_a_limit_draws_files_of_a_tree_by_hash(tmp_path):
    source = tree(tmp_path, {f"{i:03d}.py": "x" * 100 for i in range(100)})
    names = [row["id"] for row in read(SourceConfig("code", "tree", path=source.path, max_bytes=1000))[0]]
    assert len(names) == 10
    assert max(names) > "070.py"


TEXTS = {
    "MIT": MIT,
    "Apache-2.0": APACHE,
    "GPL-3.0-only": GPL3,
    "LGPL-3.0-only": LGPL3,
    "BSD-2-Clause": BSD,
    "BSD-3-Clause": BSD3,
    "ISC": f"{ISC}, provided that the above copyright notice and this permission notice appear in all copies.",
    "0BSD": f"{ISC}.",
    "Unlicense": "This is free and unencumbered software released into the public domain.",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_licence_is_told_by_its_own_words(name):
    assert licenses.of_text(TEXTS[name]) == [name]
    assert licenses.of_text("\n".join(f" * {line}" for line in TEXTS[name].upper().splitlines())) == [name]
    assert licenses.of_text(f"This is like the {name} licence") == []


def test_words_that_take_a_licence_back():
    assert licenses.of_text(f'"Commons Clause" License Condition v1.0\n{MIT}') == []
    assert licenses.of_text(f"{MIT} The Software shall be used for Good, not Evil.") == ["JSON"]
    assert licenses.of_text(f"Business Source License 1.1\nChange License: {APACHE}") == ["BUSL-1.1"]
    assert licenses.of_text(UNKNOWN) == []


FOLDERS: list[tuple[dict[str, str], str | None]] = [
    ({"LICENSE": MIT}, "MIT"),
    ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE}, "MIT AND Apache-2.0"),
    ({"LICENSE-MIT": MIT, "LICENSE-APACHE": APACHE, "Cargo.toml": CARGO}, "MIT OR Apache-2.0"),
    ({"COPYING": GPL3, "COPYING.LESSER": LGPL3}, "LGPL-3.0-only"),
    ({"COPYING": GPL3, "pyproject.toml": '[project]\nlicense = "GPL-3.0-or-later"'}, "GPL-3.0-or-later"),
    ({"LICENSE": MIT, "package.json": '{"license": "GPL-3.0"}'}, "MIT"),
    ({"LICENSE": MIT, "LICENSE.more": UNKNOWN}, ""),
    ({"LICENSE": UNKNOWN, "package.json": '{"license": "MIT"}'}, ""),
    ({"package.json": '{"license": "UNLICENSED"}'}, ""),
    ({"package.json": '{"license": {"type": "MIT"}}'}, "MIT"),
    ({"package.json": '{"name": "x"}'}, None),
    ({"package.json": "[1, broken"}, None),
    ({"composer.json": '{"license": ["MIT", "ISC"]}'}, "MIT OR ISC"),
    ({"pyproject.toml": '[project]\nlicense = {text = "BSD-3-Clause"}'}, "BSD-3-Clause"),
    ({"setup.cfg": "[metadata]\nlicense = Apache-2.0\n"}, "Apache-2.0"),
    ({"DESCRIPTION": "Package: x\nLicense: GPL-2.0+\n"}, "GPL-2.0-or-later"),
    ({"LICENSE": f"{MIT}\n\n{APACHE}\n\n{BSD3}"}, "Apache-2.0 AND MIT AND BSD-3-Clause"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), FOLDERS)
def test_the_licence_of_a_folder(files, expected):
    for order in itertools.islice(itertools.permutations(files), 2):
        got = licenses.of_folder({name: files[name].encode() for name in order})
        assert got == expected or (
            got and expected and sorted(got.split(" AND ")) == sorted(expected.split(" AND "))
        )


EXPRESSIONS = {
    "mit": "MIT",
    "GPL-2.0": "GPL-2.0-only",
    "(mit or apache-2.0) and isc": "(MIT OR Apache-2.0) AND ISC",
    "GPL-2.0-only WITH Classpath-exception-2.0": "GPL-2.0-only WITH Classpath-exception-2.0",
    "MIT OR": "",
    "MIT ISC": "",
    "(MIT": "",
    "MIT)": "",
    "WITH MIT": "",
    "Proprietary": "",
    "@LICENSE@": "",
    "": "",
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_is_one_or_is_not_known(text):
    assert licenses.expression(text) == EXPRESSIONS[text]


def test_tags_in_the_head_of_a_file():
    assert licenses.of_header("/* SPDX-License-Identifier: GPL-2.0-or-later */\nint x;") == "GPL-2.0-or-later"
    assert licenses.of_header("<!-- SPDX-License-Identifier: MIT -->") == "MIT"
    two = "# SPDX-License-Identifier: MIT OR ISC\n# SPDX-License-Identifier: 0BSD\n"
    assert licenses.of_header(two) == "(MIT OR ISC) AND 0BSD"
    assert licenses.of_header("x = 1\n" * 1000 + two) == ""
    assert licenses.of_header("# SPDX-License-Identifier: {license}\n") == ""
