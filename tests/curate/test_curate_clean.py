"""Unicode clean-up and the scrubbing of addresses."""

import random

import pyarrow as pa
import pytest

from moxin.curate.clean import clean
from moxin.curate.pii import scrub, scrub_text


def cleaned(*texts: str) -> list[str]:
    return clean(pa.array(texts, pa.string())).to_pylist()


def test_clean_up():
    assert cleaned(
        "a\r\nb\rc\u2028d",
        "\ufeffx\x00y\x0cz\u200b\x85\x9f",
        "cafe\u0301 A\u030a",
        "  def f():  \n\treturn 1\t \n\n\n\n\n\nend\u00a0\u3000\n\n",
        "",
        "\n \n",
        "e\x00\u0301",
    ) == ["a\nb\nc\nd", "xyz", "café Å", "  def f():\n\treturn 1\n\n\nend", "", "", "é"]


def test_clean_up_done_twice_changes_nothing_more():
    draw = random.Random(2)
    alphabet = [
        "a",
        "e",
        "\u0301",
        "\u0327",
        "\n",
        "\r",
        " ",
        "\t",
        "\u00a0",
        "\u2029",
        "\x07",
        "\ufeff",
        "가",
        "ᄀ",
        "ᅡ",
    ]
    once = cleaned(*("".join(draw.choices(alphabet, k=draw.randrange(30))) for _ in range(2000)))
    assert cleaned(*once) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mail ann.lee+x@post.example.org, please.", "Mail <EMAIL>, please."),
        ("<a_b-c@d-e.co.uk>;x@y.example.", "<<EMAIL>>;<EMAIL>."),
        ("user@host a @ b @decorator foo@bar..com @x.org", "user@host a @ b @decorator foo@bar..com @x.org"),
        ("from 93.184.216.34 and 93.184.216.34:80.", "from <IP_ADDRESS> and <IP_ADDRESS>:80."),
        ("127.0.0.1 10.1.2.3 192.168.0.1 172.16.9.9 0.0.0.0", None),
        ("255.255.255.255 192.0.2.1 224.0.0.99 256.93.1.1 93.184.216.34.5", None),
        ("version 93.184.216.34, numpy==12.20.30.40, v12.20.30.40, 2.4.1.0, foo-12.20.30.40", None),
        ("at 2a00:1450:4001:81b::200e: and 2606:4700::1111.", "at <IP_ADDRESS>: and <IP_ADDRESS>."),
        ("::1 fe80::1 2001:db8::1 fd00::2 12:30:45 x[2::3] std::vector 2024:01:02", None),
        ("2a01:db8:0:0:0:0:0:1", "<IP_ADDRESS>"),
        ("someone@例え.jp", None),
    ],
)
def test_addresses_of_people_go_and_what_only_looks_like_one_stays(text, expected):
    assert scrub_text(text)[0] == (text if expected is None else expected)


def test_a_column_is_scrubbed_like_its_rows_and_counted():
    texts = ["nothing", "", "see 93.184.216.34 or me@you.net", "a@b.example c@d.example", "1.2.3.4 only"]
    column, counts = scrub(pa.array(texts, pa.string()))
    assert column.to_pylist() == [scrub_text(text)[0] for text in texts]
    assert counts == {"email": 3, "ip": 1}


def test_long_runs_without_an_address_take_linear_time():
    """Quadratic search would need hours for these; the test would not end."""
    for piece in ("a" * 1_000_000, "a." * 500_000, "1." * 500_000, "2a00:" * 200_000, "a@" * 300_000):
        assert scrub_text(piece)[1].total() == 0
