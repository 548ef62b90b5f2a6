"""Count a small English lexicon from Wikipedia text: past and present verb forms with their base, given and family
names.

python make_lexicon.py --data DATA --out recipe/lexicon.json [--megabytes 60]
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from recipe.corpus import documents

_BASE = re.compile(r"\b(?:to|not|could|would|can|will|did|may) ([a-z]{2,})\b")
_PAST = re.compile(r"\b([a-z]{2,}ed)\b")
_PRESENT = re.compile(r"\b(?:it|he|she|which|that|who) ([a-z]{2,}s)\b")
_PERSON = re.compile(r"^([A-Z][a-zé]+)((?: [A-Z][\w.']+){1,2}) \((?:born|[^)]{0,60}\d{4} ?[–-] )")


def base_of_past(word: str, bases: Counter[str]) -> str:
    """The base form of a regular past form that is most often seen as a base."""
    candidates = [word[:-2], word[:-1]]
    if word.endswith("ied"):
        candidates.append(word[:-3] + "y")
    if len(word) > 5 and word[-3] == word[-4]:
        candidates.append(word[:-3])
    return max(candidates, key=lambda candidate: bases[candidate])


def base_of_present(word: str, bases: Counter[str]) -> str:
    """The base form of a third-person form."""
    candidates = [word[:-1], word[:-2], *([word[:-3] + "y"] if word.endswith("ies") else [])]
    return max(candidates, key=lambda candidate: bases[candidate])


def lexicon(texts: list[str]) -> dict[str, object]:
    """Count over `texts`; rare forms are left out."""
    bases: Counter[str] = Counter()
    past: Counter[str] = Counter()
    present: Counter[str] = Counter()
    given: Counter[str] = Counter()
    family: Counter[str] = Counter()
    for text in texts:
        head = text[:20000]
        bases.update(_BASE.findall(head))
        past.update(_PAST.findall(head))
        present.update(_PRESENT.findall(head))
        person = _PERSON.match(text)
        if person:
            given[person[1]] += 1
            family[person[2].split()[-1]] += 1
    pasts = {word: base_of_past(word, bases) for word, count in past.items() if count >= 5}
    presents = {word: base_of_present(word, bases) for word, count in present.items() if count >= 5}
    return {
        "past": {word: base for word, base in sorted(pasts.items()) if bases[base] >= 5},
        "present": {word: base for word, base in sorted(presents.items()) if bases[base] >= 10},
        "given": [name for name, count in given.most_common(900) if count >= 2],
        "family": [name for name, _ in family.most_common(4000)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=60)
    args = parser.parse_args()
    files = sorted(args.data.glob("wikipedia/*.txt*"))
    texts: list[str] = []
    for file in files:
        left = args.megabytes * 1e6 / len(files)
        for document in documents(file):
            texts.append(document.text)
            left -= len(document.text)
            if left < 0:
                break
    counted = lexicon(texts)
    args.out.write_text(json.dumps(counted, ensure_ascii=False), encoding="utf-8")
    print({name: len(values) for name, values in counted.items()})  # type: ignore[arg-type]  # every value is sized


if __name__ == "__main__":
    main()
