"""Small files in the formats of public sets, written here; no text of a real set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS = {
    "harbour": ("The old harbour of Lund was dug in 1641 by order of Queen Maud.", "When was the harbour dug?", "1641"),
    "bakery": ("The bakery on Mill Lane sells rye bread on Thursdays only.", "What does the bakery sell?", "rye bread"),
    "choir": ("The town choir is led by Ines Okafor, who came from Porto.", "Who leads the town choir?", "Ines Okafor"),
    "bridge": ("The iron bridge carries two rails and a path for walkers.", "What is the bridge made of?", "iron"),
    "clock": ("The clock in the square has struck thirteen since the fire.", "What does the clock strike?", "thirteen"),
    "ferry": ("The ferry to Skerry leaves at noon from the stone pier.", "When does the ferry leave?", "noon"),
}


def squad(version: str = "1.1") -> dict[str, Any]:
    """Two articles; in version 2.0 one question is impossible."""
    articles = []
    names = list(FACTS)
    for title, chosen in (("Lund", names[:3]), ("Skerry", names[3:])):
        paragraphs = []
        for name in chosen:
            text, question, answer = FACTS[name]
            qa: dict[str, Any] = {"id": name, "question": question}
            qa["answers"] = [{"text": answer, "answer_start": text.index(answer)}] * 2
            if version == "2.0":
                qa["is_impossible"] = name == "ferry"
            paragraphs.append({"context": text, "qas": [qa]})
        articles.append({"title": title, "paragraphs": paragraphs})
    return {"version": version, "data": articles}


def write_squad(path: Path, version: str = "1.1") -> Path:
    path.write_text(json.dumps(squad(version)))
    return path


def triviaqa() -> dict[str, Any]:
    """Two questions; only the first has an evidence document that holds an answer."""
    rows = [
        {
            "QuestionId": "tc_1",
            "Question": "When was the harbour dug?",
            "Answer": {"Value": "1641", "Aliases": ["1641", "sixteen forty-one"], "NormalizedAliases": ["1641"]},
            "EntityPages": [{"Filename": "Harbour.txt", "Title": "Harbour"}],
            "SearchResults": [],
        },
        {
            "QuestionId": "tc_2",
            "Question": "Who mends the nets?",
            "Answer": {"Value": "Tove", "Aliases": [], "NormalizedAliases": ["tove"]},
            "EntityPages": [{"Filename": "Harbour.txt", "Title": "Harbour"}],
        },
    ]
    return {"Data": rows, "Domain": "Wikipedia", "VerifiedEval": False, "Version": 1.0}


def locomo() -> list[dict[str, Any]]:
    """One conversation of two sessions with a question of every category."""
    turns = [
        ("D1:1", "Ana", "I have started to learn the cello."),
        ("D1:2", "Ben", "Great! I moved to Ghent last week."),
        ("D2:1", "Ana", "My teacher is called Orla."),
        ("D2:2", "Ben", "My cat is grey and her name is Pixel."),
    ]
    said = [{"dia_id": key, "speaker": who, "text": text} for key, who, text in turns]
    said[3] |= {"blip_caption": "a grey cat on a chair", "img_url": ["x"]}
    qa: list[dict[str, Any]] = [
        {"question": "What does Ana learn?", "answer": "the cello", "evidence": ["D1:1"], "category": 4},
        {"question": "Who teaches what?", "answer": "Orla, the cello", "evidence": ["D1:1; D2:1"], "category": 1},
        {"question": "When did Ben move?", "answer": 2021, "evidence": ["D1:2", "D9:9"], "category": 2},
        {"question": "Is Ben kind to animals?", "answer": "yes; he has a cat", "evidence": ["D2:2"], "category": 3},
        {
            "question": "What is Ana's cat called?",
            "adversarial_answer": "Pixel",
            "evidence": ["D2:2"],
            "category": 5,
        },
    ]
    conversation = {
        "speaker_a": "Ana",
        "speaker_b": "Ben",
        "session_1_date_time": "1:10 pm on 3 May, 2021",
        "session_1": said[:2],
        "session_2_date_time": "9:00 am on 9 June, 2021",
        "session_2": said[2:],
    }
    return [{"sample_id": "conv-1", "conversation": conversation, "qa": qa}]
