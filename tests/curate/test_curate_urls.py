"""URLs against the examples of RFC 3986 and urllib, blocklists against their definitions."""

from urllib.parse import urljoin, urlsplit

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moxin.curate import repeats, urls

SAME = [
    (
        "HTTP://User@Example.COM:80/a/./b/../c/?utm_source=x&b=2&a=1&FBCLID=3#part",
        "http://User@example.com/a/c?b=2&a=1",
    ),
    ("https://example.com:443", "https://example.com/"),
    ("https://example.com:8443/", "https://example.com:8443/"),
    ("https://example.com:/", "https://example.com/"),
    ("http://example.com:443/", "http://example.com:443/"),
    ("http://example.com/%7euser/%41%2f%e9?x=%7E&&y", "http://example.com/~user/A%2F%E9?x=~&y"),
    ("http://example.com/été 1?q=ü", "http://example.com/%C3%A9t%C3%A9%201?q=%C3%BC"),
    ("http://example.com/100%/%zz", "http://example.com/100%25/%25zz"),
    ("http://example.com/a//b///", "http://example.com/a//b"),
    ("http://example.com/../../a/..", "http://example.com/"),
    ("http://example.com/?", "http://example.com/"),
    ("http://example.com/?utm_medium=a#b", "http://example.com/"),
    ("http://example.com/?utm=a&fbclid2=b&gclid", "http://example.com/?utm=a&fbclid2=b"),
    ("http://xn--bcher-kva.Example/", "http://bücher.example/"),
    ("http://BÜCHER.example/", "http://bücher.example/"),
    ("http://xn--fa-hia.de/", "http://faß.de/"),
    ("http://xn--!!!.de/", "http://xn--!!!.de/"),
    ("http://[2001:DB8::1]:80/x", "http://[2001:db8::1]/x"),
    (" \thttp://exa\nmple.com/a\r\n", "http://example.com/a"),
    ("http://a%2eb/", "http://a.b/"),
    ("//Example.com/a/", "//example.com/a"),
    ("MAILTO:Someone@Example.com", "mailto:Someone@Example.com"),
    ("a/b/", "a/b/"),
    ("", ""),
]


@pytest.mark.parametrize(("url", "expected"), SAME)
def test_one_spelling(url, expected):
    assert urls.normalise(url) == expected
    assert urls.normalise(expected) == expected


def test_dot_segments_are_those_of_the_rfc():
    """§5.4.1 and §5.4.2, as far as urllib resolves them against a base with a host."""
    base = "http://a/b/c/d;p?q"
    for reference in (
        "g",
        "./g",
        "g/",
        "/g",
        "g;x=1/./y",
        "g;x=1/../y",
        ".",
        "./",
        "..",
        "../g",
        "../../g",
        "../../../g",
    ):
        plain = f"http://a/b/c/{reference}" if not reference.startswith("/") else f"http://a{reference}"
        expected = urljoin(base, reference)
        assert urls.normalise(plain) == (expected if expected == "http://a/" else expected.rstrip("/"))


@settings(max_examples=400, deadline=None)
@given(
    st.text(max_size=40)
    | st.builds(
        "{}://{}/{}?{}#{}".format,
        st.sampled_from(["http", "HTTPS", "ftp", "x+y"]),
        st.text("aB.-:@%0xn[]é/ 8İ", max_size=12),
        st.text("aZ./%2fF5é ~?&=#\\\x00\u2028😀", max_size=20),
        st.text("utm_a=&;%41é #", max_size=20),
        st.text(max_size=4),
    )
    | st.builds(
        "{}%3{}:{}".format,
        st.text("a%61:", max_size=3),
        st.text("0aA", max_size=2),
        st.text("/%2e", max_size=5),
    )
)
def test_normalised_again_it_is_the_same_and_nothing_raises(url):
    once = urls.normalise(url)
    assert urls.normalise(once) == once
    if url.isascii() and "://" in once:
        assert urlsplit(once.partition("?")[0].replace("[", "").replace("]", "")).fragment == ""


def test_the_first_of_an_address_stays_and_those_without_one_all(tmp_path):
    units = [
        ["http://a.de/x", None, "https://a.de/x", ""],
        ["HTTP://A.de:80/x/#top", "", "http://a.de/y", None],
    ]
    files = [str(tmp_path / f"unit-{k}.arrow") for k in range(2)]
    for file, unit in zip(files, units, strict=True):
        keys, has_one = urls.keys(pa.array(unit, pa.string()))
        assert has_one.tolist() == [bool(url) for url in unit]
        rows = has_one.nonzero()[0] << 32
        repeats.write_hashes(file, keys[has_one], rows, 1)
    found = repeats.first_in_range(files, 0)
    assert [column.tolist() for column in found] == [[1], [0], [0], [0], [2]]


def lists(tmp_path, **entries: str) -> urls.Blocklists:
    files = {}
    for name, text in entries.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        files[name] = [str(tmp_path / name)]
    return urls.read_blocklists(**files)


def test_blocklists_mean_what_refinedweb_says(tmp_path):
    blocked = lists(
        tmp_path,
        domains="# adult\nBad.example\nxn--bcher-kva.example\n\n",
        urls="\ufeffgood.example/bad/\nhttps://other.example/a?b=1\n",
        strict="fo-rbidden\n",
        hard="nasty\nvery bad\n",
        soft="webcam\nescort\nchat\n",
    )
    cases = {
        "http://bad.example:81/": "blocked_domain",
        "http://me@BAD.example/x": "blocked_domain",
        "http://bücher.example/": "blocked_domain",
        "http://www.bad.example/": "",
        "http://notbad.example/": "",
        "https://good.example/bad#x": "blocked_url",
        "http://other.example/a?utm_id=3&b=1": "blocked_url",
        "http://good.example/bad/more": "",
        "http://xfor.bid-den.example/": "blocked_strict_word",
        "http://x.example/%46ORbiddenly": "blocked_strict_word",
        "http://x.example/a_nasty_page": "blocked_hard_word",
        "http://x.example/nastygram": "",
        "http://x.example/Very-Bad": "blocked_hard_word",
        "http://x.example/bad-very": "",
        "http://x.example/webcam": "",
        "http://x.example/webcam/webcam": "",
        "http://x.example/webcam?escort": "blocked_soft_words",
        "": "",
    }
    assert {url: blocked.reason(url)[0] for url in cases} == cases
    assert blocked.reason("http://x.example/webcam?escort") == ("blocked_soft_words", "escort webcam")
    assert blocked.reason(None) == ("", "")
    assert urls.Blocklists().reason("http://bad.example/") == ("", "")


def test_lists_that_would_block_nothing_or_everything_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no entries"):
        lists(tmp_path, hard="# nothing\n\n")
    with pytest.raises(ValueError, match="without a letter or digit"):
        lists(tmp_path, strict="ok\n.-.\n")
    with pytest.raises(ValueError, match="min_soft=0: set it to 1"):
        urls.read_blocklists(min_soft=0)
