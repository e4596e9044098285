"""Sentences of a small English grammar over the vocabulary of a network.

Half of running text is a hundred function words and punctuation marks. What follows them, how long
sentences are, and where they end decides what layers of an encoder compute. The classes of all
other words are read off their endings: the vocabulary has `play`, `plays`, `played`, `playing`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random

# Symbol → its expansions and how often each is taken. Symbols without a rule are classes of words,
# or the words themselves.
RULES: dict[str, dict[str, int]] = {
    "text": {
        "clause .": 6,
        "clause": 1,
        "clause , conjunction clause .": 2,
        "preposition np , clause .": 1,
        "clause . clause .": 1,
        '" clause , " pronoun past .': 1,
        "question ?": 2,
        "np": 2,
        "noun noun verb np preposition np": 1,
    },
    "clause": {
        "np be participle np": 3,
        "np be participle preposition np": 2,
        "np past np": 3,
        "np past np preposition np": 2,
        "np be adjective": 2,
        "np be np": 2,
        "np be past preposition np": 1,
        "np adverb past np": 1,
        "np past that clause": 1,
        "np have past to verb np": 1,
        "pronoun modal verb np": 2,
        "np modal not verb np": 1,
    },
    "question": {
        "what be np": 2,
        "how do pronoun verb np": 2,
        "be np adjective": 1,
        "who past np": 1,
        "why do np verb np": 1,
        "modal pronoun verb np": 1,
        "where be np": 1,
    },
    "np": {
        "determiner noun": 5,
        "determiner adjective noun": 3,
        "noun": 1,
        "noun noun": 1,
        "plural": 2,
        "adjective plural": 1,
        "number plural": 1,
        "pronoun": 2,
        "np of np": 2,
        "determiner noun preposition np": 2,
        "np and np": 1,
        "determiner noun noun": 1,
        "determiner noun ' s noun": 1,
    },
}
# Common words are named several times.
FUNCTION_WORDS = {
    "determiner": "the the the the a a a a an this his her their its my some another",
    "preposition": "in in in on on of to with at for from by near over into after under about",
    "be": "is is is are are was were",
    "have": "has have had",
    "do": "do does did",
    "modal": "can will would could may should must",
    "conjunction": "and but or as when because if while",
    "pronoun": "he she they it you i we",
    "number": "two three four five several many all",
}
OPEN_CLASSES = ("participle", "past", "adverb", "plural", "verb", "adjective", "noun")
FEWEST = 16  # words of every class: with fewer, the vocabulary is hardly English
LONGEST = 32  # words of a text
_SYMBOLS = {symbol for rule in RULES.values() for text in rule for symbol in text.split()}
_LITERALS = _SYMBOLS - RULES.keys() - FUNCTION_WORDS.keys() - {*OPEN_CLASSES}
CLOSED = _LITERALS.union(*(words.split() for words in FUNCTION_WORDS.values()))


def word_classes(words: Mapping[str, int]) -> dict[str, list[int]]:
    """Return class → ids of its words, in their order; empty if the vocabulary is not English."""
    plain = {w: i for w, i in words.items() if len(w) > 2 and w.isascii() and w.isalpha()}
    plain = {w: i for w, i in plain.items() if w.islower() and w not in CLOSED}

    def stems(ending: str) -> dict[str, str]:
        return {
            word: stem
            for word in plain
            if word.endswith(ending) and (stem := _stem(word.removesuffix(ending), plain))
        }

    participles, pasts, adverbs, plurals = map(stems, ("ing", "ed", "ly", "s"))
    verbs = {stem for stem in participles.values() if stem in set(pasts.values())}
    adjectives = {stem for stem in adverbs.values() if stem not in verbs}
    derived = {*participles, *pasts, *adverbs, *plurals, *adjectives}
    nouns = [word for word in plain if word not in derived]
    members = (participles, pasts, adverbs, plurals, verbs, adjectives, nouns)
    classes = dict(zip(OPEN_CLASSES, members, strict=True))
    if not words.keys() >= CLOSED or min(map(len, classes.values())) < FEWEST:
        return {}
    ids = {name: sorted(plain[word] for word in members) for name, members in classes.items()}
    ids |= {name: [words[w] for w in text.split()] for name, text in FUNCTION_WORDS.items()}
    return ids | {word: [words[word]] for word in _LITERALS}


def _stem(start: str, words: Mapping[str, int]) -> str:
    """Return the word that a word without its ending comes from: play, mak(e), run(n)."""
    doubled = len(start) > 3 and start[-1] == start[-2]
    candidates = (start, f"{start}e", start[:-1] if doubled else "")
    return next((word for word in candidates if word in words), "")


def write_text(random: Random, choose: Callable[[str], int]) -> list[int]:
    """Write a text of at most `LONGEST` words; `choose(class)` returns the id of a word."""
    while True:
        symbols = list(_expanded("text", random))
        if len(symbols) <= LONGEST:
            return [choose(symbol) for symbol in symbols]


def _expanded(symbol: str, random: Random, depth: int = 0) -> Iterator[str]:
    rules = RULES.get(symbol)
    if rules is None:
        yield symbol
        return
    # the first of them ends a deep recursion
    chosen = next(iter(rules)) if depth > 5 else random.choices([*rules], [*rules.values()])[0]
    for part in chosen.split():
        yield from _expanded(part, random, depth + 1)
