"""Word pairs that a question may exchange."""

from __future__ import annotations

import re
from random import Random

_PAIRS = (
    "founded/established founded/created located/situated began/started begin/start film/movie largest/biggest "
    "area/region built/constructed build/construct completed/finished complete/finish received/got receive/get "
    "obtain/get released/issued main/primary company/firm song/track album/record author/writer named/called "
    "produced/made produce/make country/nation approximately/about about/roughly home/residence help/assist "
    "moved/relocated bought/purchased buy/purchase used/utilized show/display include/contain includes/contains "
    "play/perform job/occupation ended/finished end/finish often/frequently usually/typically people/individuals "
    "war/conflict original/initial entire/whole discovered/found discover/find leader/head required/needed "
    "require/need appeared/featured allow/let increase/rise decrease/decline launched/started publish/issue "
    "designed/planned destroyed/ruined students/pupils highest/tallest composed/wrote develop/create "
    "developed/created "
)
_SYNONYMS: dict[str, tuple[str, ...]] = {}
for _pair in _PAIRS.split():
    _left, _right = _pair.split("/")
    _SYNONYMS[_left] = (*_SYNONYMS.get(_left, ()), _right)
    _SYNONYMS[_right] = (*_SYNONYMS.get(_right, ()), _left)


def with_synonyms(question: str, rng: Random) -> str:
    """In half of the questions, some words are replaced by a synonym."""
    if rng.random() < 0.5:
        return question
    words = question.split(" ")
    return " ".join(rng.choice(_SYNONYMS[w]) if w in _SYNONYMS and rng.random() < 0.3 else w for w in words)


_OPPOSITES = (
    "first last/largest smallest/biggest smallest/highest lowest/oldest newest/oldest youngest/"
    "longest shortest/before after/increase decrease/increased decreased/more fewer/most fewest/"
    "northern southern/eastern western/north south/east west/won lost/win lose/accepted rejected/"
    "accept reject/allowed banned/allow ban/began ended/begin end/started stopped/opened closed/male female/"
    "men women/father mother/brother sister/husband wife/son daughter/above below/early late/earlier later/"
    "maximum minimum/strong weak/hot cold/fast slow/rich poor/rural urban/public private/internal external/"
    "positive negative/import export/buy sell/bought sold/arrive leave/arrived left/gained lost/"
    "victory defeat/attack defend/supported opposed/support oppose/old new/upper lower/cause prevent/"
    "caused prevented/founded dissolved/created destroyed/built demolished/common rare/easy difficult/"
    "advantage disadvantage/legal illegal/possible impossible/success failure"
).split("/")
_OPPOSITE = {a: b for pair in _OPPOSITES for a, b in (pair.split(), pair.split()[::-1])}


def opposite(question: str, rng: Random) -> str | None:
    """The question with one word turned into its opposite, or with a `not`; the passage then seldom answers it."""
    words = question.split(" ")
    places = [i for i, word in enumerate(words) if i and word.strip("?,") in _OPPOSITE]
    if places:
        at = rng.choice(places)
        word = words[at].strip("?,")
        words[at] = words[at].replace(word, _OPPOSITE[word])
        return " ".join(words)
    found = re.search(r"\b(was|were|is|are|can|could) (?=\w+(?:ed|en|ing)\b)", question)
    return question[: found.end()] + "not " + question[found.end() :] if found else None
