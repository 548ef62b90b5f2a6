"""Word pairs that a question may exchange."""

from __future__ import annotations

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
