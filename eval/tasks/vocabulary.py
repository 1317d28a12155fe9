# SPDX-License-Identifier: Apache-2.0
"""The closed vocabulary of the task texts, and an encoder for it that needs only the standard library.

A token is a special marker, a word (with or without the space before it), or a single byte, so every text can
be written and no token ever spans two words: documents tokenize alike alone and concatenated. The order of
`TOKENS` is the order of ids and is part of the trained model; append to the free ids at its end, never
insert.
"""

from __future__ import annotations

import re
from itertools import islice, product

VOCAB_SIZE = 2048

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
SYSTEM, USER, ASSISTANT, SEG = "<|system|>", "<|user|>", "<|assistant|>", "<|seg|>"
NAMED_SPECIALS = (BOS, END, PAD, SYSTEM, USER, ASSISTANT, SEG)
SPECIALS = (*NAMED_SPECIALS, *(f"<|reserved_{i}|>" for i in range(32 - len(NAMED_SPECIALS))))


def _syllable_words(count: int, onsets: str, middles: str, endings: str, stride: int) -> tuple[str, ...]:
    """`count` distinct capitalised words, spread over all combinations of the given syllables."""
    combos = ["".join(parts).capitalize() for parts in product(*(p.split() for p in (onsets, middles, endings)))]
    spread = [combos[i * stride % len(combos)] for i in range(len(combos))]
    return tuple(islice(dict.fromkeys(spread), count))


NAMES = _syllable_words(
    480,
    "be da fo gri ha jo ke lu mo ni pe ro su ta vi za",
    "ba do le mi nu ra si to ve",
    "l n r s th na ko",
    137,
)
LABELS = _syllable_words(
    400,
    "bra cle dre flo glu kri ple qua sko tru wil yor",
    "ch dd ff gg kk mp nt rv",
    "am eb ic od ux ay",
    131,
)
NUMBERS = tuple(str(i) for i in range(10, 100))

CITIES = tuple(
    """Paris London Rome Oslo Madrid Berlin Vienna Prague Dublin Lisbon Athens Warsaw Cairo Tokyo Delhi Lima
Quito Havana Boston Denver Dallas Austin Miami Chicago Seattle Toronto Montreal Ottawa Sydney Perth Geneva
Zurich Milan Turin Naples Venice Munich Hamburg Cologne Bremen Kyoto Osaka Seoul Busan Beijing Taipei Hanoi
Manila Jakarta Mumbai Lahore Kabul Tehran Baghdad Beirut Amman Doha Nairobi Lagos Accra Dakar Tunis Rabat
Tripoli Kampala Lusaka Harare Durban Kyiv Minsk Riga Vilnius Tallinn Helsinki Bergen Malmo Aarhus Ghent Lyon
Nice Lille Porto Seville Sofia Belgrade Zagreb""".split()
)
JOBS = tuple(
    """teacher doctor nurse lawyer baker farmer pilot sailor painter writer singer dancer actor judge chef
    waiter
driver plumber welder mason tailor barber butcher grocer jeweler banker broker clerk editor printer potter
weaver miner hunter ranger guard dentist surgeon coach referee tutor curator architect engineer mechanic
gardener""".split()
)
PETS = tuple(
    """dog cat rabbit hamster parrot turtle snake lizard goldfish ferret pony goat donkey sheep duck goose
    pigeon
canary finch mouse gecko frog toad newt crab spider beetle cricket""".split()
)
FOODS = tuple(
    """apple banana cherry grape lemon mango melon peach pear plum bread butter cheese yogurt honey jam rice
    pasta
pizza soup salad steak salmon tuna shrimp bacon ham omelet pancake waffle muffin cookie cake pie pudding curry
taco burrito kebab hummus tofu onion carrot potato tomato pepper spinach cabbage""".split()
)
HOBBIES = tuple(
    """chess poker tennis golf rugby hockey boxing fencing judo karate archery rowing surfing skiing skating
climbing hiking cycling running diving knitting sewing pottery origami juggling drawing""".split()
)
COLORS = tuple(
    """red blue green yellow purple pink brown black white gray violet indigo crimson scarlet teal cyan
    magenta
maroon navy beige ivory amber coral silver golden copper""".split()
)
OBJECTS = tuple(
    """anchor arrow basket bell blanket bottle bucket button candle carpet chain clock compass cradle crown
curtain drum feather flute hammer helmet kettle key ladder lamp lantern magnet mirror needle paddle pencil
pillow pipe ribbon rope saddle scale shovel spoon sword trumpet umbrella vase violin wagon whistle""".split()
)
THEMES = tuple(
    """trade energy climate water health sport music cinema travel fashion housing labor mining forestry
    fishing
aviation railway physics biology history geography poetry drama opera ballet justice defense taxation
migration education tourism recycling robotics security medicine""".split()
)

ATTRIBUTES = {"city": CITIES, "job": JOBS, "pet": PETS, "food": FOODS, "hobby": HOBBIES}
ORDINALS = ("first", "second", "third", "fourth")

PROSE_STARTS = tuple("The A Some Every This That One Another".split())
PROSE_ADJECTIVES = tuple(
    """old small quiet bright cold warm narrow wide early late heavy light broken simple distant hollow
gentle rough steady empty""".split()
)
PROSE_NOUNS = tuple(
    """river road garden window village market harbor forest meadow bridge tower street field stone cloud
season letter morning evening train ship hill valley lake island wall gate roof path house""".split()
)
PROSE_VERBS = tuple(
    """passed crossed reached followed covered touched opened closed carried met left held joined
kept shaped""".split()
)
PROSE_LINKS = tuple("near under over behind beside above below beyond".split())

# Words that begin a line in documents and answers; they appear after a space in ordinary prose too.
LINE_STARTS = (
    *ATTRIBUTES,
    *ORDINALS,
    *PROSE_STARTS,
    "manager",
    "visits",
    "value",
    "var",
    "code",
    "box",
    "theme",
    "Report",
    "Question",
)
COMMON = tuple(
    """more You you are is a an the of and or in on to for from with by it as no not yes I do be what which
    who
Read read reports report answer question Answer the Use use only them below Be brief helpful assistant System
Documents documents follow follows given each was has have that this hello Hello thanks please""".split()
)

_WORDS = tuple(dict.fromkeys((*LINE_STARTS, *COMMON)))
_BARE_WORDS = tuple(w for w in _WORDS if len(w) > 1)  # a lone letter is already a byte
_SPACED_WORDS = tuple(
    dict.fromkeys(
        (
            *_WORDS,
            *NAMES,
            *LABELS,
            *NUMBERS,
            *CITIES,
            *JOBS,
            *PETS,
            *FOODS,
            *HOBBIES,
            *COLORS,
            *OBJECTS,
            *THEMES,
            *PROSE_ADJECTIVES,
            *PROSE_NOUNS,
            *PROSE_VERBS,
            *PROSE_LINKS,
        )
    )
)


def _build_tokens() -> tuple[str | int, ...]:
    words = (*_BARE_WORDS, *(" " + w for w in _SPACED_WORDS))
    tokens: list[str | int] = [*SPECIALS, *range(256), *words]
    if len(tokens) > VOCAB_SIZE or len(set(words)) != len(words):
        raise ValueError(f"{len(tokens)} tokens for {VOCAB_SIZE} ids, or a word listed twice")
    return (*tokens, *(f"<|free_{i}|>" for i in range(VOCAB_SIZE - len(tokens))))


TOKENS: tuple[str | int, ...] = _build_tokens()
"""Token of each id: special markers and words as text (with their leading space, if any), bytes as int."""

_IDS = {token: i for i, token in enumerate(TOKENS)}
_SPECIAL_SPLIT = re.compile("(" + "|".join(re.escape(s) for s in SPECIALS) + ")")
_PIECE = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+| ?_+|\s+(?!\S)|\s+")


def token_id(token: str) -> int:
    """Id of a special marker or of a word (with its leading space, if meant); KeyError if it has none."""
    return _IDS[token]


def encode(text: str) -> list[int]:
    """Token ids of `text`, the same as `tokenizer.json` gives for texts made by this package."""
    ids: list[int] = []
    for part in _SPECIAL_SPLIT.split(text):
        if part in SPECIALS:
            ids.append(_IDS[part])
            continue
        for piece in _PIECE.findall(part):
            known = _IDS.get(piece)
            ids.extend([known] if known is not None else [_IDS[b] for b in piece.encode()])
    return ids


def decode(ids: list[int]) -> str:
    """Text of `ids`, special markers included; bytes that are not UTF-8 become U+FFFD."""
    raw = b"".join(bytes([t]) if isinstance(t, int) else t.encode() for t in (TOKENS[i] for i in ids))
    return raw.decode("utf-8", errors="replace")
