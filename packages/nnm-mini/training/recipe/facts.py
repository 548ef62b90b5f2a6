"""Generated facts about people, projects, codes, schedules and things: documents, needles and their questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

from recipe.fact_table import TABLE
from recipe.grammar import given_names, lexicon
from recipe.layout import DONT_KNOW

_CITIES = (
    "Lisbon Oslo Denver Kyoto Madrid Berlin Austin Porto Prague Lyon Seattle Dublin Vienna Nairobi Lima Boston Chicago "
    "Toronto Mumbai Cairo Athens Zurich Geneva Helsinki Warsaw Krakow Seoul Osaka Perth Sydney Auckland Bogota Santiago "
    "Havana Quito Bristol Leeds Glasgow Cardiff Milan Naples Turin Florence Munich Hamburg Cologne Antwerp Ghent Utrecht"
).split()
_ITEMS = (
    "laptop printer projector camera tablet router monitor scanner bicycle drill generator microphone telescope keyboard "
    "drone scooter phone server radio heater fridge oven piano guitar tent kayak blender vacuum"
).split()
COLOURS = "red blue green yellow black white silver purple orange brown grey pink golden turquoise maroon".split()
_TEAMS = (
    "marketing finance sales engineering legal support design research logistics security operations purchasing training"
).split()
_PROJECTS = (
    "Falcon Orion Atlas Nimbus Juniper Cobalt Mercury Phoenix Saturn Willow Aurora Granite Delta Everest Comet Lotus Titan "
    "Zephyr Neptune Harbor Maple Quartz Raven Sable Tundra Vega Marlin Onyx Pioneer Echo Lynx Ember Drift Beacon Canyon"
).split()
_PLACES = (
    "the main entrance/the server room/the north warehouse/the garage/the storage room/the gym locker/the safe/the cabin/"
    "the archive/the back gate/the lab/the office kitchen/the roof door/the parking lot/the boathouse/the attic/"
    "the wine cellar/the guest house/the conference room/the library/the studio/the greenhouse/the vault/the old mill"
).split("/")
_ADJECTIVES = (
    "amber brave calm dizzy eager fancy gentle happy icy jolly kind lively misty noble odd proud quiet rapid silent tiny "
    "urgent vivid warm young zesty bold crisp dusty early frozen grand hollow"
).split()
_NOUNS = (
    "anchor bridge candle desert engine forest garden hammer island jacket kettle lantern mirror needle orchard pencil "
    "quarry river saddle temple umbrella valley window yacht zebra button castle dragon feather glacier harbor pillow"
).split()
_RELATIVES = (
    "sister brother wife husband mother father uncle aunt cousin neighbour boss assistant dog cat parrot doctor".split()
)
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_MONTHS = "January February March April May June July August September October November December".split()
_LISTS: dict[str, list[str]] = {
    "city": _CITIES,
    "item": _ITEMS,
    "colour": COLOURS,
    "team": _TEAMS,
    "project": _PROJECTS,
    "place": _PLACES,
    "day": _DAYS,
    "month": _MONTHS,
    "food": "peanuts shellfish milk eggs soy wheat sesame strawberries tomatoes mushrooms garlic honey almonds mustard".split(),
    "dish": "lasagna/lentil soup/apple pie/mushroom risotto/beef stew/pancakes/paella/chicken curry/vegetable chili/"
    "banana bread/goulash/ramen/tiramisu/fish tacos/pumpkin soup/sushi/falafel/ratatouille/cheesecake".split("/"),
    "hobby": "chess/rock climbing/painting/photography/gardening/playing the cello/swimming/baking/bird watching/cycling/"
    "pottery/fencing/sailing/knitting/running marathons/archery/stamp collecting/surfing/yoga/karate/woodworking".split(
        "/"
    ),
    "job": "nurse/architect/dentist/plumber/teacher/pilot/accountant/chef/lawyer/electrician/librarian/carpenter/"
    "data analyst/product manager/software engineer/graphic designer/mechanic/journalist/pharmacist/translator".split(
        "/"
    ),
    "language": "French German Spanish Italian Portuguese Dutch Polish Turkish Arabic Hindi Japanese Korean Swedish".split(),
    "subject": "mathematics physics history chemistry geography biology music art economics law medicine philosophy".split(),
    "bin": "paper bin/glass bin/garden waste/recycling bin/food waste/plastic bin/old furniture/metal scrap".split("/"),
}
_FILLER = (
    "The weather has been nice this week./Please keep this note safe./Nothing else happened today./It was a long day./"
    "The coffee machine was repaired again./We also talked about the summer party./The team went for lunch together./"
    "Traffic was heavy in the morning./The next update will follow soon./Several people asked about the new schedule./"
    "More details are in the shared folder./Everyone agreed that the meeting was useful./The printer ran out of paper."
).split("/")
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"


@dataclass(frozen=True)
class Relation:
    """What can be said of a subject, and how; the held-out wordings are never used in training."""

    subject: str
    value: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out_statements: tuple[str, ...]
    held_out_questions: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """One statement with its question and answer; `key` is unique for what the question asks."""

    key: str
    statement: str
    question: str
    answer: str


@cache
def relations() -> tuple[Relation, ...]:
    """The table of `fact_table`."""
    out = []
    for line in TABLE.strip().split("\n"):
        subject, value, *wordings = line.split("|")
        out.append(Relation(subject, value, *(tuple(wording.split(" / ")) for wording in wordings)))
    return tuple(out)


def digits(rng: Random, count: int) -> str:
    """`count` random digits."""
    return "".join(rng.choice("0123456789") for _ in range(count))


def _code(rng: Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return digits(rng, rng.choice([3, 4, 4, 5, 6, 6, 6, 7, 8]))
    if kind < 0.65:
        return rng.choice(_LETTERS) + rng.choice(_LETTERS) + "-" + digits(rng, rng.choice([3, 4, 5]))
    if kind < 0.75:
        return "".join(rng.choice(_LETTERS + "0123456789") for _ in range(rng.randint(5, 8)))
    return rng.choice(_ADJECTIVES) + rng.choice(["", "-"]) + rng.choice(_NOUNS) + digits(rng, 2)


def _date(rng: Random) -> str:
    day, month, kind = rng.randint(1, 28), rng.choice(_MONTHS), rng.random()
    if kind < 0.7:
        return f"{day} {month}" if kind < 0.4 else f"{month} {day}"
    year = rng.randint(1950, 2030)
    return f"{month} {day}, {year}" if kind < 0.85 else f"{day} {month} {year}"


def _time(rng: Random) -> str:
    hour, minutes = rng.randint(1, 12), rng.choice(["00", "15", "30", "45"])
    return rng.choice([f"{hour} pm", f"{hour} am", f"{hour + 7}:{minutes}", f"{hour}:{minutes} pm"])


def _price(rng: Random) -> str:
    value = rng.choice(
        [str(rng.randint(5, 999)), f"{rng.randint(1, 99)},{digits(rng, 3)}", f"{rng.randint(2, 90)}.{digits(rng, 2)}"]
    )
    return rng.choice([f"${value}", f"{value} dollars", f"{value} euros", f"€{value}", f"£{value}"])


def _company(rng: Random) -> str:
    first = rng.choice(
        "Nova Blue Green Silver North Bright Red Iron Clear Deep Star River Stone Sun Terra Aqua Luna".split()
    )
    return first + rng.choice("tech soft works line field wave labs media bank point".split())


class Generator:
    """Draws facts. With `held_out`, names and wordings are those that training never uses."""

    def __init__(self, rng: Random, held_out: bool = False) -> None:
        self.rng, self.held_out = rng, held_out
        given = [name for name in lexicon()["given"] if name in given_names()]
        family = list(lexicon()["family"])
        # Every eighth given and family name is kept for measuring.
        self.given = [name for i, name in enumerate(given[:720]) if (i % 8 == 7) == held_out]
        self.family = [name for i, name in enumerate(family) if (i % 8 == 7) == held_out]
        self.makers: dict[str, Callable[[Random], str]] = {
            "code": _code,
            "date": _date,
            "time": _time,
            "price": _price,
            "company": _company,
            "phone": lambda r: r.choice([f"555-{digits(r, 4)}", f"{digits(r, 3)}-{digits(r, 3)}-{digits(r, 4)}"]),
            "room": lambda r: digits(r, 3),
            "year": lambda r: str(r.randint(1890, 2024)),
            "count": lambda r: r.choice([str(r.randint(3, 990)), f"{r.randint(1, 99)},{digits(r, 3)}"]),
            "number": lambda r: digits(r, r.choice([4, 5, 6])),
            "flight": lambda r: r.choice(_LETTERS) + r.choice(_LETTERS) + digits(r, 3),
            "minutes": lambda r: f"{r.randint(5, 180)} minutes",
            "amount": lambda r: f"{r.randint(1, 900)} {r.choice(['grams', 'ml', 'cups', 'spoons', 'ounces'])}",
            "age": lambda r: str(r.randint(18, 90)),
            "street": lambda r: (
                f"{r.randint(1, 250)} {r.choice(_NOUNS).capitalize()} {r.choice(['Street', 'Road', 'Lane'])}"
            ),
            "secret": lambda r: f"{r.choice(_ADJECTIVES)} {r.choice(_NOUNS)}",
            "thing": lambda r: f"{r.choice(COLOURS)} {r.choice(_ITEMS)}",
            "person": lambda _: self.person(),
            "relative": lambda r: f"{self.person()}'s {r.choice(_RELATIVES)}",
            "pair": lambda _: f"{self.person()} and {self.person()}",
            "email": lambda r: f"{r.choice(self.given).lower()}{digits(r, 2)}@{_company(r).lower()}.com",
        }

    def person(self) -> str:
        """A given name, seven times in ten with a family name."""
        given = self.rng.choice(self.given)
        return given if self.rng.random() < 0.3 else f"{given} {self.rng.choice(self.family)}"

    def _make(self, kind: str) -> str:
        return self.makers[kind](self.rng) if kind in self.makers else self.rng.choice(_LISTS[kind])

    def fact(self) -> Fact:
        """One random fact."""
        number = self.rng.randrange(len(relations()))
        relation = relations()[number]
        subject, value = self._make(relation.subject), self._make(relation.value)
        statements = relation.held_out_statements if self.held_out else relation.statements
        questions = relation.held_out_questions if self.held_out else relation.questions
        statement = self.rng.choice(statements).format(s=subject, v=value)
        question = self.rng.choice(questions).format(s=subject, v=value)
        statement = statement[0].upper() + statement[1:]
        answer = value if value in statement else value[0].upper() + value[1:]
        return Fact(f"{number}:{subject}", statement, question, answer)

    def facts(self, count: int) -> list[Fact]:
        """Up to `count` facts with different keys."""
        found: dict[str, Fact] = {}
        for _ in range(3 * count):
            fact = self.fact()
            found.setdefault(fact.key, fact)
            if len(found) == count:
                break
        return list(found.values())

    def document(self, count: int) -> tuple[str, list[Fact]]:
        """A note of `count` facts with some filler, in one of five styles."""
        return self.note(self.facts(count))

    def note(self, facts: list[Fact]) -> tuple[str, list[Fact]]:
        """A note of these facts with some filler, in one of five styles."""
        rng = self.rng
        lines: list[str] = []
        for fact in facts:
            lines += [fact.statement, *([rng.choice(_FILLER)] if rng.random() < 0.18 else [])]
        style = rng.randrange(5)
        if style == 0:
            return " ".join(lines), facts
        if style == 1:
            return "\n".join(f"- {line}" for line in lines), facts
        if style == 2:
            return "\n".join(f"{rng.choice(_DAYS)}, {_date(rng)}: {line}" for line in lines), facts
        if style == 3:
            speakers = [self.person().split(" ")[0], self.person().split(" ")[0]]
            return "\n".join(f"{speakers[i % 2]}: {line}" for i, line in enumerate(lines)), facts
        return rng.choice(["Meeting notes. ", "Dear team, ", "Notes: ", "Memory: "]) + " ".join(lines), facts

    def unanswerable(self, facts: list[Fact]) -> tuple[str, str]:
        """A question that none of `facts` answers: the known relation of another subject, another relation of a known
        subject, or something else."""
        facts = [fact for fact in facts if not fact.key.startswith("event:")]
        keys = {fact.key for fact in facts}
        if facts and self.rng.random() < 0.35:
            number = int(self.rng.choice(facts).key.split(":")[0])
            relation = relations()[number]
            subject = self._make(relation.subject)
            known = " ".join(fact.statement for fact in facts)
            if f"{number}:{subject}" not in keys and subject.split(" ")[0] not in known:
                return self.rng.choice(relation.questions).format(s=subject, v=""), DONT_KNOW
        if facts and self.rng.random() < 0.5:
            subject = self.rng.choice(facts).key.split(":", 1)[1]
            kinds = {
                relations()[int(fact.key.split(":")[0])].subject for fact in facts if fact.key.endswith(":" + subject)
            }
            others = [i for i, r in enumerate(relations()) if r.subject in kinds and f"{i}:{subject}" not in keys]
            if others:
                wording = self.rng.choice(relations()[self.rng.choice(others)].questions)
                return wording.format(s=subject, v=""), DONT_KNOW
        fact = self.fact()
        while fact.key in keys:
            fact = self.fact()
        return fact.question, DONT_KNOW
