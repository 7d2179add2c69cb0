"""What the rows of a benchmark's data set say: words, articles, documents, files; the same for the same seed."""

from __future__ import annotations

import itertools
import json
import math
import random
from array import array
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

_COMMON = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which"
    " one you were all her she there would their we him been has when who will no more if out so up said what its"
)
_STEMS = (
    "account act age appear area art balance bank base board boat book border bottle branch bread bright build burn"
    " call camp care carry cast cell chain change charge chart check clear climb clock cloud coast cold collect color"
    " command common compar connect consider contain control cook corner cotton count cover craft cross culture"
    " custom dark deal deliver depart depend design detail develop differ direct discover divid double dream drift"
    " east edit effect engine enter equal event expect expert explain extend factor farm field figur film final"
    " finish fire flood floor flow follow forest form found frame friend front garden gather gentl gold govern grain"
    " green ground group grow guard harbor harvest head hear help history hold hunt improv index industr inform"
    " island journal judg kitchen labor land languag law lead learn letter level light limit listen local machin"
    " market master matter measur member metal mind model moment mountain music nation network night north number"
    " object observ ocean offer office open operat order paint paper part pattern people perform person picture plan"
    " plant point policy power present press process produc project protect provid public purpos quart question"
    " record region relat report river round season second select sign silver simpl south station stone storm story"
    " street strong summer support surfac system teach thought trade travel valley village visit voice water weather"
    " west wild window winter wonder work world yellow"
)
_ENDINGS = ("", "s", "ed", "ing", "er", "ion", "al", "ment", "able", "ly")
_ELSEWHERE = "Zürich Málaga façade Łódź naïve København 東京 São Ελλάδα Київ garçon über piñata Ångström €25 “quoted”"
_TOWNS = ("Lyon", "Zürich", "Kraków", "Osaka", "Málaga", "Tromsø", "Leeds", "Graz")
_DRAWS = 1 << 16
_FLATTER = 4
_COMMA, _STOP = 9, 14
_HALF = 0.5
_LONGEST = 4000
"""Words of the longest article."""
_FIRST_DAY = datetime(2023, 1, 1)
_SMALLEST, _USUAL, _LARGEST = 1_000, 60_000, 1_000_000
"""Bytes of a file."""
_SKEWED = bytes(min(255, int(32 + 14 * math.log2(1 + value))) & 0xFE for value in range(256))
"""What a byte of noise becomes in a file that compresses somewhat."""

Lines = Callable[[random.Random], Iterator[bytes]]


def _vocabulary() -> list[str]:
    """As many entries as there are 16-bit numbers: the more frequent a word, the more of them."""
    stems = _STEMS.split()
    derived = [stem + ending for ending in _ENDINGS for stem in stems]
    words = [*_COMMON.split(), *derived[: len(stems)], *_ELSEWHERE.split(), *derived[len(stems) :]]
    weights = [1 / (rank + _FLATTER) for rank in range(len(words))]
    drawn = random.Random(0).choices(words, weights, k=_DRAWS)
    return [word + (". " if n % _STOP == 0 else ", " if n % _COMMA == 0 else " ") for n, word in enumerate(drawn)]


_VOCABULARY = _vocabulary()


def prose(noise: random.Random, words: int) -> str:
    """That many words, as frequent as words are, with commas and full stops."""
    return "".join(map(_VOCABULARY.__getitem__, array("H", noise.randbytes(2 * words)))).rstrip()


def articles(noise: random.Random) -> Iterator[bytes]:
    """Lines for LOAD DATA: id, title, author, published, views, body; without an end."""
    for number in itertools.count(1):
        words = min(_LONGEST, 20 + int(noise.lognormvariate(5.2, 0.8)))
        published = _FIRST_DAY + timedelta(minutes=3 * number)
        cells = (number, prose(noise, 8), prose(noise, 2), published, noise.randrange(100_000), prose(noise, words))
        yield "\t".join(map(str, cells)).encode() + b"\n"


def profiles(noise: random.Random) -> Iterator[bytes]:
    """Lines for LOAD DATA: id, owner, seen, document (nested JSON); without an end."""
    for number in itertools.count(1):
        owner = noise.randbytes(12).hex()
        seen = _FIRST_DAY + timedelta(minutes=number)
        yield f"{number}\t{owner}\t{seen}\t{json.dumps(_document(noise, owner), ensure_ascii=False)}\n".encode()


def images(noise: random.Random) -> Iterator[bytes]:
    """Files that do not compress, as images; without an end."""
    while True:
        yield noise.randbytes(_size(noise))


def attachments(noise: random.Random) -> Iterator[bytes]:
    """Files that compress somewhat; without an end."""
    for file in images(noise):
        yield file.translate(_SKEWED)


def _size(noise: random.Random) -> int:
    return min(_LARGEST, _SMALLEST + int(noise.expovariate(1 / _USUAL)))


def _document(noise: random.Random, owner: str) -> dict[str, object]:
    return {
        "owner": owner,
        "revision": noise.randrange(40),
        "name": prose(noise, 2),
        "address": {"street": prose(noise, 2), "town": noise.choice(_TOWNS), "code": noise.randrange(100_000)},
        "place": {"lat": round(noise.uniform(-90, 90), 6), "lon": round(noise.uniform(-180, 180), 6)},
        "settings": {"mail": noise.random() < _HALF, "language": noise.choice(("en", "fr", "pl", "ja")), "theme": None},
        "tags": [prose(noise, 1) for _ in range(noise.randrange(6))],
        "items": [_item(noise) for _ in range(noise.randrange(1, 12))],
    }


def _item(noise: random.Random) -> dict[str, object]:
    return {
        "sku": noise.randbytes(4).hex(),
        "count": noise.randrange(1, 20),
        "price": round(noise.uniform(1, 500), 2),
        "note": prose(noise, noise.randrange(1, 12)),
    }
