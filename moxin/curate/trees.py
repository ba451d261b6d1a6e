"""Source trees: one repository or a folder of them, every file of a known programming language, with language and licence.

A file's licence is what its own head says (an SPDX tag), else what the nearest folder above it says that says anything.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from moxin import storage
from moxin.curate import licenses

FILE_BYTES = 1 << 20
"""Larger files are data or generated; BigCode's limit, too."""
_NOTICE_BYTES = 1 << 19
_LANGUAGES = """
ada: adb ads | agda: agda | assembly: asm s | awk: awk | bash: sh bash zsh | batch: bat cmd | c: c h | c#: cs csx
c++: cc cpp cxx c++ hh hpp hxx ipp inl tpp | clojure: clj cljs cljc | cmake: cmake | common lisp: lisp lsp cl asd
coq: coq | crystal: cr | css: css scss sass less | cuda: cu cuh | cython: pyx pxd pxi | d: d di | dart: dart
dockerfile: dockerfile | elixir: ex exs | elm: elm | emacs lisp: el | erlang: erl hrl | f#: fs fsi fsx
fortran: f f77 f90 f95 f03 f08 for | gleam: gleam | glsl: glsl vert frag | go: go | graphql: gql | groovy: groovy gradle
haskell: hs lhs | haxe: hx | hcl: tf hcl | html: html htm | idris: idr | java: java | javascript: js jsx mjs cjs | julia: jl
kotlin: kt kts | lean: lean | llvm: ll | lua: lua | makefile: mk mak | matlab: matlab | mlir: mlir | nim: nim nims | nix: nix
objective-c: m mm | ocaml: ml mli | odin: odin | pascal: pas pp lpr | perl: pl pm | php: php | powershell: ps1 psm1
prolog: pro prolog | protobuf: proto | python: py pyi pyw | r: r | racket: rkt | ruby: rb rake gemspec | rust: rs
scala: scala sc sbt | scheme: scm ss sld | smalltalk: st | solidity: sol | sql: sql | starlark: bzl star | svelte: svelte
swift: swift | systemverilog: sv svh | tcl: tcl | tex: tex sty cls | thrift: thrift | typescript: ts tsx mts cts
vala: vala | verilog: v vh | vhdl: vhd vhdl | vim script: vim | visual basic: vb bas | vue: vue | wgsl: wgsl | zig: zig
"""
LANGUAGES = {
    f".{suffix}": name
    for entry in re.split(r"[|\n]", _LANGUAGES.strip())
    for name, _, suffixes in [entry.strip().partition(": ")]
    for suffix in suffixes.split()
}
_NAMES = {
    "makefile": "makefile",
    "gnumakefile": "makefile",
    "dockerfile": "dockerfile",
    "cmakelists.txt": "cmake",
}
_NAMES |= {"rakefile": "ruby", "gemfile": "ruby", "build.bazel": "starlark", "jenkinsfile": "groovy"}
_SKIPPED = """node_modules bower_components jspm_packages vendor vendored _vendor third_party thirdparty 3rdparty external
site-packages dist-packages venv __pycache__ build dist target out obj _build deriveddata pods carthage cmakefiles"""
SKIPPED_FOLDERS = frozenset(_SKIPPED.split())
"""In lower case; hidden folders (`.git`) are left out too."""
_GENERATED = re.compile(
    r"[.-]min\.(js|css)$|_pb2(_grpc)?\.pyi?$|\.pb\.(go|cc|h)$|\.bundle\.js$", re.IGNORECASE
)
_MARKS = (
    "pyproject.toml",
    "setup.py",
    "cargo.toml",
    "package.json",
    "go.mod",
    "pom.xml",
    "composer.json",
    "makefile",
)


@dataclass(frozen=True)
class SourceFile:
    name: str
    """Path below the tree's folder."""
    size: int
    lang: str
    license: str | None
    """None where nothing above the file says anything."""
    repository: str
    """Path of the file's repository below the tree's folder; empty for the folder itself."""


def language(name: str) -> str:
    """The language of a file by its name, empty where it is none that is known."""
    path = PurePosixPath(name)
    return _NAMES.get(path.name.lower()) or LANGUAGES.get(path.suffix.lower(), "")


def listing(url: str) -> dict[str, int]:
    """Path and size of every file below `url` that is neither hidden, vendored nor built, in the paths' order."""
    if storage.is_local(url):
        return dict(sorted(_local(str(storage.local_path(url)))))
    return {name: size for name, size in storage.sizes_under(url).items() if not _skipped(name.split("/"))}


def _skipped(parts: list[str]) -> bool:
    return any(part.startswith(".") for part in parts) or not SKIPPED_FOLDERS.isdisjoint(
        part.lower() for part in parts[:-1]
    )


def _local(top: str) -> Iterator[tuple[str, int]]:
    """Links are not followed: in repositories they lead to what is there already, also in circles."""
    for folder, folders, names in os.walk(top):
        folders[:] = [name for name in folders if not _skipped([name, ""])]
        for name in names:
            path = os.path.join(folder, name)
            if not name.startswith(".") and not os.path.islink(path):
                yield os.path.relpath(path, top).replace(os.sep, "/"), os.path.getsize(path)


def is_code(name: str, size: int) -> bool:
    return 0 < size <= FILE_BYTES and bool(language(name)) and not _GENERATED.search(name)


def files(url: str) -> list[SourceFile]:
    """Every source file below `url`, in the paths' order. Reads the texts of licences and packages' metadata."""
    listed = listing(url)
    stated = _licenses(url, listed)
    marked = {_folder(name) for name in listed if _is_mark(name.rpartition("/")[2])}
    found = []
    for name, size in listed.items():
        if is_code(name, size):
            above = _above(name)
            license_ = next((stated[folder] for folder in reversed(above) if folder in stated), None)
            # The outermost folder that looks like a repository; else the first one below the tree's.
            repository = next((folder for folder in above if folder in marked), above[min(1, len(above) - 1)])
            found.append(SourceFile(name, size, language(name), license_, repository))
    return found


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _above(name: str) -> list[str]:
    """The folders that hold a file, the tree's own (empty) first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts) + 1)]


def _is_mark(name: str) -> bool:
    return name.lower() in _MARKS or _is_notice(name)


def _is_notice(name: str) -> bool:
    return bool(licenses.TEXT_NAMES.fullmatch(name)) and not language(name)


def _licenses(url: str, listed: dict[str, int]) -> dict[str, str]:
    """What every folder that says something of a licence says."""
    wanted = [
        name
        for name, size in listed.items()
        if size <= _NOTICE_BYTES
        and (_is_notice(last := name.rpartition("/")[2]) or last in licenses.METADATA_NAMES)
    ]
    texts = storage.in_threads(lambda name: storage.read_bytes(storage.join(url, name)), wanted)
    folders: dict[str, dict[str, bytes]] = {}
    for name, data in zip(wanted, texts, strict=True):
        folders.setdefault(_folder(name), {})[name.rpartition("/")[2]] = data
    stated = {folder: licenses.of_folder(texts) for folder, texts in folders.items()}
    return {folder: value for folder, value in stated.items() if value is not None}


def decoded(data: bytes) -> str:
    """Source code as text. Raises `ValueError` for what is not: a NUL byte, or neither UTF-8 nor marked as UTF-16."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if (at := data.find(b"\0")) >= 0:
        raise ValueError(f"a NUL byte at {at}: not a text")
    return data.decode("utf-8-sig")
