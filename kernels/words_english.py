"""What spaCy's rule-based English tokenizer (3.8) knows: character classes and the strings it cuts in ways of their own.

These are the facts that `kernels.words` turns into tables, in a form of our own: classes as ranges of code points, special
cases as lists and as rules that make the variants. The tests hold both against spaCy where it is installed.
"""

from collections.abc import Iterable, Iterator

# Ranges of code points in hexadecimal; "/2" takes every second one.
CASELESS = """591-5F4 620-64A 66E-6D5 6E5-6FF 750-77F 8A0-8BD 900-9FF B80-CFF D80-DFF 1100-137F 2E80-2FDF 2FF0-30FF 31C0-31EF
3200-4DBF 4E00-9FFF AC00-D7AF F900-FAFF FB1D-FBB1 FBD3-FD3D FD50-FDC7 FDF0-FDFB FE30-FE4F FE70-FEFC 1EE00-1EEBB 1F200-1F2FF
20000-2A6DF 2A700-2EBEF 2F800-2FA1F"""
"""Letters, and all else in their blocks, that are taken for lower and upper case at once."""
LOWER = """61-7A DF-F6 F8-FF 101-137/2 138-148/2 149-177/2 17A-17E/2 17F-180 183 185 188 18C-18D 192 195 199-19B 19E
1A1-1A5/2 1A8 1AA-1AB 1AD 1B0 1B4 1B6 1B9-1BA 1BD-1BF 1C6 1C9 1CC-1DC/2 1DD-1EF/2 1F0 1F3 1F5 1F9-233/2 234-239 23C
23F-240 242 247-24F/2 250-2AF 3AC-3AF 3B1-3C9 3CC-3CE 430-451 453-45A 45C-45D 491 497 4A3 4AF 4BB 4D9 4E9 1D00-1D25
1D6B-1D77 1D79-1D9A 1E01-1E95/2 1E96-1E9D 1E9F-1EFF/2 2C61 2C65-2C66 2C68-2C6C/2 2C71 2C73-2C74 2C76-2C7B A723-A72F/2
A730-A731 A733-A771/2 A772-A778 A77A A77C A77F-A787/2 A78C A78E A791 A793-A795 A797-A7A9/2 A7AF A7B5-A7B9/2 A7FA
AB30-AB5A AB60-AB64 FF41-FF5A"""
UPPER = """41-5A C0-D6 D8-DE 100-136/2 139-147/2 14A-178/2 179-17D/2 181-182 184 186-187 189-18B 18E-191 193-194 196-198
19C-19D 19F-1A0 1A2-1A6/2 1A7 1A9 1AC 1AE-1AF 1B1-1B3 1B5 1B7-1B8 1BC 1C4 1C7 1CA 1CD-1DB/2 1DE-1EE/2 1F1 1F4 1F6-1F8
1FA-232/2 23A-23B 23D-23E 241 243-246 248-24E/2 386 388-38A 38C 38E-38F 391-3A9 400-401 403-40A 40C-40D 410-42F 490 496 4A2
4AE 4BA 4D8 4E8 1E00-1E94/2 1E9E-1EFE/2 2C60 2C62-2C64 2C67-2C6D/2 2C6E-2C70 2C72 2C75 2C7E-2C7F A722-A72E/2 A732-A76E/2
A779-A77D/2 A77E-A786/2 A78B A78D A790 A792 A796-A7AA/2 A7AB-A7AE A7B0-A7B4 A7B6 A7B8 FF21-FF3A"""
TITLE = "1BB 1C5 1C8 1CB 1F2"
"""Letters of neither case."""
ICONS = """A6 A9 AE B0 482 58D-58E 60E-60F 6DE 6E9 6FD-6FE 7F6 9FA B70 BF3-BF8 BFA C7F D4F D79 F01-F03 F13 F15-F17 F1A-F1F
F34-F38/2 FBE-FC5 FC7-FCC FCE-FCF FD5-FD8 109E-109F 1390-1399 1940 19DE-19FF 1B61-1B6A 1B74-1B7C 2100-2101 2103-2106
2108-2109 2114 2116-2117 211E-2123 2125-2129/2 212E 213A-213B 214A 214C-214D 214F 218A-218B 2195-2199 219C-219F 21A1-21A2
21A4-21A5 21A7-21AD 21AF-21CD 21D0-21D1 21D3 21D5-21F3 2300-2307 230C-231F 2322-2328 232B-237B 237D-239A 23B4-23DB 23E2-2426
2440-244A 249C-24E9 2500-25B6 25B8-25C0 25C2-25F7 2600-266E 2670-2767 2794-27BF 2800-28FF 2B00-2B2F 2B45-2B46 2B4D-2B73
2B76-2B95 2B98-2BC8 2BCA-2BFE 2CE5-2CEA 2E80-2E99 2E9B-2EF3 2F00-2FD5 2FF0-2FFB 3004 3012-3013 3020 3036-3037 303E-303F
3190-3191 3196-319F 31C0-31E3 3200-321E 322A-3247 3250 3260-327F 328A-32B0 32C0-32FE 3300-33FF 4DC0-4DFF A490-A4C6 A828-A82B
A836-A837 A839 AA77-AA79 FDFD FFE4 FFE8 FFED-FFEE FFFC-FFFD 10137-1013F 10179-10189 1018C-1018E 10190-1019B 101A0
101D0-101FC 10877-10878 10AC8 1173F 16B3C-16B3F 16B45 1BC9C 1D000-1D0F5 1D100-1D126 1D129-1D164 1D16A-1D16C 1D183-1D184
1D18C-1D1A9 1D1AE-1D1E8 1D200-1D241 1D245 1D300-1D356 1D800-1D9FF 1DA37-1DA3A 1DA6D-1DA74 1DA76-1DA83 1DA85-1DA86 1ECAC
1F000-1F02B 1F030-1F093 1F0A0-1F0AE 1F0B1-1F0BF 1F0C1-1F0CF 1F0D1-1F0F5 1F110-1F16B 1F170-1F1AC 1F1E6-1F202 1F210-1F23B
1F240-1F248 1F250-1F251 1F260-1F265 1F300-1F3FA 1F400-1F6D4 1F6E0-1F6EC 1F6F0-1F6F9 1F700-1F773 1F780-1F7D8 1F800-1F80B
1F810-1F847 1F850-1F859 1F860-1F887 1F890-1F8AD 1F900-1F90B 1F910-1F93E 1F940-1F970 1F973-1F976 1F97A 1F97C-1F9A2
1F9B0-1F9B9 1F9C0-1F9C2 1F9D0-1F9FF 1FA60-1FA6D"""
"""Symbols that are words by themselves wherever they stand: most of the Unicode category So, emoji among them."""

PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》\u3008\u3009\u2329\u232a⟦⟧"
DASHES = "–—"
CURRENCY = "$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫€₭₮₯₰₱₲₳₴₵₶₷₸₹₺₻₼₽₾₿"
DOLLARS = ["US$", "C$", "A$"]
_UNITS = """km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph
hPa Pa mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч
кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب
اكواب"""
UNITS = tuple(_UNITS.split())
"""Cut off a number that they follow. "тбكم" is spaCy's own: a space is missing there."""

EMOTICONS = r""":) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :(
:-( :(( :-(( :((( :-((( ): )-: =( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0
:-0 :() >:o :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x :D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._.
;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-)
(._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>"""
WHOLE = r"""\t \n — ' '' \") <space> C++ 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout 'd
ma'am Ma'am o'clock O'clock lovin' Lovin' lovin Lovin havin' Havin' havin Havin em 'em ll 'll nuff 'nuff
Mt. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del. Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky.
La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn.
Va. Wash. Wis. a.m. Adm. Bros. co. Co. Corp. D.C. Dr. e.g. E.g. E.G. Gen. Gov. i.e. I.e. I.E. Inc. Jr. Ltd. Md. Messrs. Mo.
Mont. Mr. Mrs. Ms. p.m. Ph.D. Prof. Rep. Rev. Sen. St. vs. v.s."""
"""Strings that stay in one piece."""
PIECES = """y'+all y+all how+'d+'y How+'d+'y not+'ve not+ve Not+'ve Not+ve can+not Can+not gon+na Gon+na got+ta Got+ta let+'s
Let+'s c'm+on C'm+on"""
"""Strings and where they are cut."""
# Verb forms and pronouns, and what they take, in lower and title case, each with an apostrophe and without.
CONTRACTIONS = (
    ("i", "'m 'm+a"),
    ("i you he she it we they", "'ll 'll+'ve 'd 'd+'ve"),
    ("i you we they", "'ve"),
    ("you we they", "'re"),
    ("he she it", "'s"),
    ("who what when where why how there that this these those", "'ll 'll+'ve 'd 'd+'ve"),
    ("who what when where why how there that this", "'s"),
    ("who what when where why how there these those", "'re 've"),
    ("ca could do does did had may might must need ought sha should wo would", "n't n't+'ve"),
    ("could might must should would", "'ve"),
    ("ai are is was were have has dare", "n't"),
)
DROPPED_G = "doin goin nothin nuthin ol somethin"
"""Stay in one piece, with an apostrophe after them too, in lower and title case."""
ORDINARY = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"
"""What the rules make of contractions but is more often another word."""


def code_points(ranges: str) -> Iterator[int]:
    """The code points of ranges in the form above."""
    for item in ranges.split():
        bounds, _, step = item.partition("/")
        first, _, last = bounds.partition("-")
        yield from range(int(first, 16), int(last or first, 16) + 1, int(step or 1))


def special_cases() -> dict[str, tuple[str, ...]]:
    """Every string that has a cut of its own, and its pieces, which put together give the string."""
    cases: dict[str, tuple[str, ...]] = {}

    def add(*words: str) -> None:
        cases["".join(words)] = words

    for word in (
        *EMOTICONS.split(),
        *WHOLE.split(),
        *(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyzäöü"),
    ):
        add(word)
    for unit in "cfkCFK":
        add("°", unit, ".")
    for word in _both_cases(DROPPED_G.split()):
        add(word)
        add(word + "'")
    for stems, endings in CONTRACTIONS:
        for stem in _both_cases(stems.split()):
            for ending in endings.split():
                add(stem, *ending.split("+"))
                add(stem, *ending.replace("'", "").split("+"))
    for hour in range(1, 13):
        for half in ("a.m.", "am", "p.m.", "pm"):
            add(str(hour), half)
    for word in PIECES.split():
        add(*word.split("+"))
    for word in ORDINARY.split():
        cases.pop(word, None)
    typographic = [tuple(piece.replace("'", "’") for piece in pieces) for pieces in cases.values()]
    cases.update(("".join(pieces), pieces) for pieces in typographic)
    return cases


def _both_cases(words: Iterable[str]) -> Iterator[str]:
    for word in words:
        yield word
        yield word.title()
