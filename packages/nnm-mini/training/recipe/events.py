"""Generated events and attributes: who did what, where, when and for whom, in many orders, with a question for each
part.

They add wordings to the relations of `fact_table`: statements and questions are composed, so that a question asks for
any
part of a sentence that may have another order and voice. The held-out wordings of the fact table are not among them.
"""

from __future__ import annotations

from recipe.facts import COLOURS, Fact, Generator, digits

_VERBS = [
    tuple(line.split("/"))
    for line in (
        "repaired/repair/repaired sold/sell/sold painted/paint/painted lost/lose/lost found/find/found "
        "cleaned/clean/cleaned returned/return/returned hid/hide/hidden photographed/photograph/photographed "
        "mailed/mail/mailed donated/donate/donated measured/measure/measured dropped/drop/dropped "
        "inspected/inspect/inspected designed/design/designed built/build/built fixed/fix/fixed wrapped/wrap/wrapped "
        "replaced/replace/replaced broke/break/broken moved/move/moved rented/rent/rented tested/test/tested "
        "labelled/label/labelled delivered/deliver/delivered auctioned/auction/auctioned insured/insure/insured "
        "described/describe/described sketched/sketch/sketched weighed/weigh/weighed polished/polish/polished "
        "assembled/assemble/assembled dismantled/dismantle/dismantled examined/examine/examined "
        "discovered/discover/discovered restored/restore/restored requested/request/requested stole/steal/stolen "
        "bought/buy/bought chose/choose/chosen wrote/write/written published/publish/published opened/open/opened "
        "closed/close/closed burned/burn/burned buried/bury/buried collected/collect/collected caught/catch/caught "
        "drew/draw/drawn brought/bring/brought copied/copy/copied edited/edit/edited filmed/film/filmed "
        "planted/plant/planted harvested/harvest/harvested invented/invent/invented praised/praise/praised "
        "rejected/reject/rejected approved/approve/approved reviewed/review/reviewed translated/translate/translated"
    ).split(" ")
]
_THINGS = (
    "report letter map statue clock carpet violin manuscript engine boat wagon lamp vase tower fence barn "
    "portrait coin "
    "medal helmet sword ring necklace diary poem novel song recipe catalogue chart blueprint prototype sensor battery "
    "pump valve turbine mirror lens compass trunk suitcase parcel basket ladder bench cupboard curtain tapestry mosaic "
    "fountain bridge gate well chapel windmill sled saddle plough kettle barrel cannon flag banner drum flute harp"
).split()
_KINDS = (
    "old new broken wooden silver golden heavy small large blue red green rusty antique modern Roman Chinese "
    "French Dutch "
    "marble bronze glass iron leather paper secret lost famous tiny painted carved second third last original"
).split()
_SPOTS = (
    "in the harbour/at the market/in the basement/near the river/at the station/behind the church/in the old barn/"
    "at the museum/in the workshop/on the roof/under the bridge/at the school/in the courtyard/at the airport/"
    "in the forest/on the beach/at the town hall/in the hotel lobby/beside the lake/at the farm/in the tunnel/"
    "at the factory/in the theatre/near the border/at the hospital/in the garden shed/on the second floor"
).split("/")
_PURPOSES = (
    "because of the flood/because the roof leaked/to raise money/to save time/because of a complaint/to "
    "surprise the guests/"
    "because the deadline was near/to honour the founder/because of the strike/to prevent an accident/"
    "because the price had doubled/to impress the jury/because of the heavy snow/to settle a debt/to make room"
).split("/")
_TIMES = (
    "on Monday/on Tuesday/on Wednesday/on Thursday/on Friday/on Saturday/on Sunday/in January/in February/in "
    "March/in April/"
    "in May/in June/in July/in August/in September/in October/in November/in December/yesterday morning/last night/"
    "two days ago/at noon/at midnight/after lunch/before the storm/during the festival/at Easter/at the end of the year"
).split("/")
_ATTRIBUTES = (
    "password/passcode/badge number/licence plate/tracking number/account number/extension/seat number/reference/"
    "voucher number/locker number/membership number/model number/batch number/callsign/frequency/postcode/"
    "customer number/ticket number/booking reference/inventory number/shelf mark/docket number/permit number"
).split("/")
_ROLES = (
    "treasurer/captain/coach/secretary/chairperson/conductor/curator/editor/spokesperson/mayor/principal/head chef/"
    "lead singer/chief engineer/goalkeeper/deputy/caretaker/guide/patron/president/sponsor/inspector/referee/"
    "choreographer"
).split("/")
_GROUPS = (
    "the rowing club/the choir/the school board/the town council/the chess society/the orchestra/the museum/the "
    "shelter/"
    "the debating team/the village band/the film crew/the union/the harbour office/the botanical society/the "
    "theatre group/"
    "the rescue squad/the reading circle/the cycling league/the food bank/the festival committee/the night watch"
).split("/")
_UNITS = (
    ("weighs", "weigh", "How heavy is", "kilograms tonnes grams pounds"),
    ("measures", "measure", "How long is", "metres feet centimetres inches"),
    ("holds", "hold", "How much does {s} hold", "litres gallons passengers visitors"),
    ("contains", "contain", "What does {s} contain", "pages coins letters bottles stones tiles"),
    ("lasted", "last", "How long did {s} last", "minutes hours days weeks"),
)

_ROOMS = (
    "cellar/tool shed/boat shed/north gate/tower/pump room/reading room/chapel/dark room/print shop/stable/"
    "sauna/lighthouse/cold store/kiln/observatory/locker room/engine room/clinic/post room/armoury/canteen/"
    "bakery/drying room/aviary/dairy/wardrobe/control room/linen room/music room/aquarium/ticket office/"
    "signal box/pharmacy/gallery/crypt/nursery/kennel"
).split("/")
_SIDES = (
    "old new upper lower small big second third west south inner outer grey white brick wooden stone former".split()
)
_LOCKS = (
    ("Typing {c} opens {p}.", "What opens {p}?/What do you have to type to open {p}?/Which number opens {p}?"),
    (
        "The lock of {p} answers only to {c}.",
        "To what does the lock of {p} answer?/Which number does the lock of {p} obey?",
    ),
    (
        "You will need {c} if you want to enter {p}.",
        "What will you need to enter {p}?/Which number is needed to enter {p}?",
    ),
    (
        "{c} was written on the door of {p}.",
        "What was written on the door of {p}?/Which number was on the door of {p}?",
    ),
    ("The guard at {p} asks every visitor for {c}.", "What does the guard at {p} ask for?"),
    ("Since last week {p} can only be entered with {c}.", "With what can {p} be entered?/How can {p} be entered now?"),
    (
        "They reset the lock on {p}, and it is now {c}.",
        "What was the lock on {p} reset to?/What is the lock on {p} now?",
    ),
    ("A note taped to {p} says {c}.", "What does the note on {p} say?/What is said by the note taped to {p}?"),
    ("Nobody gets past the door of {p} without {c}.", "What is needed to get past the door of {p}?"),
    ("The number {c} belongs to {p}.", "Which number belongs to {p}?/What is the number of {p}?"),
    ("In the register, {p} is listed under {c}.", "Under what is {p} listed in the register?"),
    ("The safe in {p} is unlocked by dialling {c}.", "What must be dialled to unlock the safe in {p}?"),
    ("My cousin told me that {c} will turn off the alarm in {p}.", "What will turn off the alarm in {p}?"),
    ("The plate above {p} shows {c}.", "What is shown on the plate above {p}?/What does the plate above {p} show?"),
    (
        "{p} got a new key code, {c}, in spring.",
        "What is the new key code of {p}?/Which key code did {p} get in spring?",
    ),
    ("The secret number for {p} turned out to be {c}.", "What did the secret number for {p} turn out to be?"),
    ("The janitor keeps {p} locked with {c}.", "With what does the janitor keep {p} locked?/Which number locks {p}?"),
    (
        "If the gate of {p} is shut, dial {c}.",
        "What do you dial if the gate of {p} is shut?/Which number opens {p}'s gate?",
    ),
    ("Our supplier needs {c} to be let into {p}.", "What does the supplier need to be let into {p}?"),
    ("It was Friday when {p} was given the code {c}.", "Which code was {p} given?/What was {p} given on Friday?"),
    (
        "The display at {p} must show {c} before the bolt moves.",
        "What must the display at {p} show before the bolt moves?",
    ),
    ("Memorise {c}, since it is the way into {p}.", "What is the way into {p}?/What should be memorised for {p}?"),
    ("Staff of {p} identify themselves with {c}.", "With what do the staff of {p} identify themselves?"),
    ("We agreed on {c} for {p}.", "What did we agree on for {p}?/Which number was agreed on for {p}?"),
)
"""Statements about a place with a code, each with its questions."""

_CODES = "code/number/combination/key/digits/sequence/password/passcode/entry code/security number/lock number".split(
    "/"
)
_OPENERS = (
    "/////As of Monday, /Since the repair, /For the record: /A memo says that /Remember that /By the way, /"
    "Everybody knows that /{w} noted that /{w} says that /As {w} told us, /From next week on, /"
    "In the minutes we read that /It was decided that /Nobody forgets that "
).split("/")
_CODED = (
    "{p} is opened with {c}|With what is {p} opened?/What opens {p}?/Which {n} opens {p}?",
    "{p} is secured by the {n} {c}|By which {n} is {p} secured?/What secures {p}?",
    "the {n} assigned to {p} is {c}|Which {n} is assigned to {p}?/What was assigned to {p}?",
    "{p} carries the {n} {c}|Which {n} does {p} carry?/What is the {n} of {p}?",
    "{c} is kept as the {n} of {p}|What is kept as the {n} of {p}?/Which {n} does {p} have?",
    "{w} chose {c} as the {n} for {p}|What did {w} choose for {p}?/Which {n} was chosen for {p}?",
    "{p} has {c} as its {n}|What does {p} have as its {n}?/What is the {n} of {p}?",
    "visitors of {p} must enter {c} on the panel|What must visitors of {p} enter?/What is entered on the panel of {p}?",
    "{p} appears in the ledger as {c}|As what does {p} appear in the ledger?/Which {n} does the ledger give for {p}?",
    "{p} was filed under {c}|Under what was {p} filed?/Under which {n} was {p} filed?",
    "{p} is marked with {c}|With what is {p} marked?/What marks {p}?",
    "{p} stays shut until {c} is dialled|What must be dialled before {p} opens?/What is dialled to open {p}?",
    "{w} closes {p} with {c}|With what does {w} close {p}?/What closes {p}?",
    "{p} reacts only to {c}|To what does {p} react?/To which {n} does {p} react?",
    "the label on {p} bears {c}|What does the label on {p} bear?/Which {n} is on the label of {p}?",
    "the {n} printed for {p} was {c}|Which {n} was printed for {p}?/What was printed for {p}?",
    "the door of {p} obeys {c}|What does the door of {p} obey?/Which {n} does the door of {p} obey?",
    "in the catalogue {p} is number {c}|Which number is {p} in the catalogue?/What number does the catalogue give {p}?",
    "{p} received {c} as its {n}|What did {p} receive as its {n}?/Which {n} did {p} receive?",
    "the safe in {p} was set to {c}|To what was the safe in {p} set?/What is the setting of the safe in {p}?",
    "{w} locked {p} and used {c}|What did {w} use to lock {p}?/What was used to lock {p}?",
    "those who unlock {p} key in {c}|What do people key in to unlock {p}?/What is keyed in to unlock {p}?",
    "{p} is known to the computer as {c}|As what is {p} known to the computer?/How does the computer know {p}?",
    "{p} can be recognised by the {n} {c}|By which {n} can {p} be recognised?/By what can {p} be recognised?",
)
"""What may follow an opener, and its questions; {p} place, {c} code, {n} its kind, {w} a person."""
_FIGURES = (
    "In {y}, {n} people visited the {t}.",
    "The {t} was built in {y} and cost {n} pounds.",
    "About {n} copies of the {t} were sold by {y}.",
    "The {t} lies {n} metres above the sea.",
    "Between {y} and {z}, the {t} was closed.",
    "The ticket for the {t} has the number {n}.",
    "{n} stones were needed for the {t}.",
    "The telephone of the {t} is {n}.",
)
"""Sentences with numbers that no question asks for: {y} and {z} years, {n} a number, {t} a thing."""


class Events:
    """Draws events about the generator's people."""

    def __init__(self, generator: Generator) -> None:
        self.generator, self.rng = generator, generator.rng

    def _thing(self) -> str:
        return f"the {self.rng.choice(_KINDS)} {self.rng.choice(_THINGS)}"

    def fact(self) -> Fact:
        """One event, lock, attribute, role or measure, with one question about it."""
        share = self.rng.random()
        if share < 0.46:
            return self._event()
        if share < 0.62:
            return self._lock() if share < 0.52 else self._coded()
        return self._attribute() if share < 0.78 else self._role() if share < 0.9 else self._measure()

    def codes(self, count: int) -> list[Fact]:
        """Up to `count` facts about codes, with different keys: the others distract from the one that is asked for."""
        facts = [self.rng.choice([self._coded, self._coded, self._lock, self._attribute])() for _ in range(count)]
        return list({fact.key: fact for fact in facts}.values())

    def figure(self) -> str:
        """A sentence with a number and perhaps years."""
        rng = self.rng
        year, number = rng.randint(1700, 2020), rng.randint(100, 999_999)
        text = rng.choice(_FIGURES)
        return text.format(
            y=year, z=year + rng.randint(1, 40), n=rng.choice([f"{number:,}", number]), t=rng.choice(_THINGS)
        )

    def _event(self) -> Fact:
        rng = self.rng
        past, base, participle = rng.choice(_VERBS)
        who, what, whom = self.generator.person(), self._thing(), self.generator.person()
        where, when, why = rng.choice(_SPOTS), rng.choice(_TIMES), rng.choice(_PURPOSES)
        parts = {"place": where, "time": when, "whom": f"for {whom}", "why": why}
        chosen = rng.sample(["place", "time", "whom"], rng.choice([1, 1, 2, 3])) + (
            ["why"] if rng.random() < 0.2 else []
        )
        tail = " ".join(parts[name] for name in chosen)
        front = next((name for name in chosen if name in ("place", "time")), None)
        rest = " ".join(parts[name] for name in chosen if name != front)
        orders = [
            f"{who} {past} {what} {tail}.",
            f"{what} was {participle} by {who} {tail}.",
            f"It was {who} who {past} {what} {tail}.",
        ]
        if front:
            orders.append(f"{parts[front]}, {who} {past} {what} {rest}".rstrip() + ".")
            orders.append(f"{parts[front]}, {what} was {participle} by {who} {rest}".rstrip() + ".")
        statement = rng.choice(orders)
        return self._ask(
            f"{past}:{who}:{what}",
            statement[0].upper() + statement[1:],
            self._questions((past, base, participle), who, what, chosen, parts),
        )

    def _questions(
        self, verb: tuple[str, ...], who: str, what: str, chosen: list[str], parts: dict[str, str]
    ) -> list[tuple[str, str]]:
        rng = self.rng
        past, base, participle = verb
        extra = f" {parts[rng.choice(chosen)]}" if rng.random() < 0.35 else ""
        out = [
            (
                rng.choice(
                    [f"Who {past} {what}?", f"By whom was {what} {participle}?", f"Who was it that {past} {what}?"]
                ),
                who,
            ),
            (rng.choice([f"What did {who} {base}{extra}?", f"What was {participle} by {who}{extra}?"]), what),
        ]
        if "place" in chosen:
            out.append(
                (rng.choice([f"Where did {who} {base} {what}?", f"Where was {what} {participle}?"]), parts["place"])
            )
        if "time" in chosen:
            out.append(
                (rng.choice([f"When did {who} {base} {what}?", f"When was {what} {participle}?"]), parts["time"])
            )
        if "whom" in chosen:
            whom = parts["whom"][4:]
            out.append((rng.choice([f"For whom did {who} {base} {what}?", f"Who was {what} {participle} for?"]), whom))
        if "why" in chosen:
            out.append((rng.choice([f"Why did {who} {base} {what}?", f"Why was {what} {participle}?"]), parts["why"]))
        return out

    def _ask(self, key: str, statement: str, questions: list[tuple[str, str]]) -> Fact:
        question, answer = self.rng.choice(questions)
        if answer not in statement:
            answer = answer[0].upper() + answer[1:]
        if answer.startswith("the ") and self.rng.random() < 0.5:
            answer = answer[4:]
        return Fact(f"event:{key}", statement, question[0].upper() + question[1:], answer)

    def _attribute(self) -> Fact:
        rng = self.rng
        name, subject = (
            rng.choice(_ATTRIBUTES),
            rng.choice([self._thing(), rng.choice(_GROUPS), self.generator.person()]),
        )
        value = self.generator.makers["code"](rng)
        statement = rng.choice(
            [
                f"The {name} of {subject} was set to {value}.",
                f"We registered {value} as the {name} of {subject}.",
                f"{subject} got a new {name}: {value}.",
                f"As for the {name} of {subject}, it is {value}.",
                f"Please note {value} ({name} of {subject}).",
                f"{value} is still the {name} of {subject}.",
            ]
        )
        question = rng.choice(
            [
                f"What is the {name} of {subject}?",
                f"Which {name} does {subject} have?",
                f"What is {subject}'s {name}?",
                f"What was the {name} of {subject}?",
            ]
        )
        return self._ask(f"{name}:{subject}", statement[0].upper() + statement[1:], [(question, value)])

    def _place(self) -> str:
        """A room or a thing that can be locked or numbered, most often told apart by a side or colour."""
        rng = self.rng
        side = rng.choice(rng.choice([_SIDES, _SIDES, list(COLOURS)]))
        return (
            f"the {side + ' ' if rng.random() < 0.65 else ''}{rng.choice(_ROOMS if rng.random() < 0.75 else _THINGS)}"
        )

    def _coded(self) -> Fact:
        """A place with a code, in a composed wording; most codes are plain numbers."""
        rng = self.rng
        core, _, questions = rng.choice(_CODED).partition("|")
        value = digits(rng, rng.choice([4, 5, 6, 6, 6])) if rng.random() < 0.7 else self.generator.makers["code"](rng)
        place, word, who = self._place(), rng.choice(_CODES), self.generator.person()
        names = {"p": place, "c": value, "n": word, "w": who}
        # A person named by the opener is another one than the core's.
        text = rng.choice(_OPENERS).format(w=self.generator.person()) + core.format(**names) + "."
        asked = [(question.format(**names), value) for question in questions.split("/")]
        return self._ask(f"lock:{place}", text[0].upper() + text[1:], asked)

    def _lock(self) -> Fact:
        rng = self.rng
        place = self._place()
        value = self.generator.makers["code"](rng)
        statement, questions = rng.choice(_LOCKS)
        text = statement.format(p=place, c=value)
        asked = [(question.format(p=place), value) for question in questions.split("/")]
        return self._ask(f"lock:{place}", text[0].upper() + text[1:], asked)

    def _role(self) -> Fact:
        rng = self.rng
        role, group, who = rng.choice(_ROLES), rng.choice(_GROUPS), self.generator.person()
        statement = rng.choice(
            [
                f"{who} became the {role} of {group}.",
                f"{group} elected {who} as {role}.",
                f"The new {role} of {group} is {who}.",
                f"{who}, the {role} of {group}, was late.",
                f"As {role}, {who} speaks for {group}.",
            ]
        )
        asked = [
            (f"Who is the {role} of {group}?", who),
            (f"Who was elected {role} of {group}?", who),
            (f"What is {who}'s role in {group}?", role),
            (f"Of which group is {who} the {role}?", group),
        ]
        return self._ask(f"{role}:{group}", statement[0].upper() + statement[1:], asked)

    def _measure(self) -> Fact:
        rng = self.rng
        says, _, asks, units = rng.choice(_UNITS)
        subject = (
            self._thing()
            if says != "lasted"
            else rng.choice(["the concert", "the strike", "the trial", "the voyage", "the siege"])
        )
        value = f"{rng.randint(2, 950)} {rng.choice(units.split())}"
        question = (asks.format(s=subject) if "{s}" in asks else f"{asks} {subject}") + "?"
        statement = rng.choice(
            [
                f"{subject} {says} {value}.",
                f"We know that {subject} {says} {value}.",
                f"{subject} {says} exactly {value}.",
            ]
        )
        return self._ask(f"{says}:{subject}", statement[0].upper() + statement[1:], [(question, value)])

    def unanswerable(self, known: list[Fact]) -> str | None:
        """The question of a known event with its person or thing replaced by another one, or None."""
        rng = self.rng
        events = [fact for fact in known if fact.key.startswith("event:")]
        if not events:
            return None
        fact = rng.choice(events)
        subjects = [part for part in fact.key.split(":")[2:] if part in fact.question and part != fact.answer]
        if not subjects:
            return None
        subject = rng.choice(subjects)
        other = self.generator.person() if subject[0].isupper() else self._thing()
        text = " ".join(fact.statement for fact in known)
        return (
            None
            if other in text or (other.split(" ")[0] in text.split() and other[0].isupper())
            else fact.question.replace(subject, other)
        )
