"""Writes `everyday.jsonl`, the query set that the local models are compared on.

    python config/queries/generate.py

896 short questions in 16 categories, 56 each, that a program can grade. The categories are meant to ask for
different things of a small model (facts, following an instruction, copying, continuing, counting), so that
neither a chat-tuned model nor a base model has all of them to itself. After a trial on 130 of them letters,
counting, translation and sentiment were changed, each as a whole, from instructions to worked examples
(both local models still fail nearly all of these, and they stay), sayings and patterns lost the wordings
that end in an ellipsis, and extraction lost a kind of question whose answer an echo contained; cities,
languages and currencies were added because the trial had little that the local models could do, before any
answer to them was seen. No single question was added or dropped for how a model answered it. Facts and word
lists were written for this file; a seed draws the wording and the items.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SEED = 20240607
EACH = 56
Question = dict[str, Any]


def pairs(text: str) -> list[tuple[str, ...]]:
    """Items of an authored list: `;` or a new line between items, `=` between the parts of one."""
    return [
        tuple(part.strip() for part in item.split("=")) for item in re.split(r"[;\n]", text) if item.strip()
    ]


def question(
    prompt: str, grader: str, answers: Iterable[str], max_tokens: int, choices: Iterable[str] = ()
) -> Question:
    """A record of the query set, without its id and category."""
    record: Question = {
        "prompt": prompt,
        "grader": grader,
        "answers": list(answers),
        "max_tokens": max_tokens,
    }
    return {**record, "choices": list(choices)} if choices else record


def alternatives(text: str) -> list[str]:
    """The accepted answers of an item, written with `|` between them."""
    return [part.strip() for part in text.split("|")]


# the categories: each yields questions, the caller keeps the first EACH of them


def capitals(rng: random.Random) -> Iterable[Question]:
    """Which city governs a country: facts of rising rarity."""
    wordings = (
        "What is the capital of {}?",
        "Name the capital city of {}.",
        "Which city is the capital of {}?",
    )
    for country, city in shuffled(rng, CAPITALS):
        yield question(rng.choice(wordings).format(country), "contains", alternatives(city), 24)


def cities(rng: random.Random) -> Iterable[Question]:
    """Which country a city lies in."""
    wordings = (
        "In which country is {}?",
        "Which country is the city of {} in?",
        "{} is a city in which country?",
    )
    for city, country in shuffled(rng, CITIES):
        yield question(rng.choice(wordings).format(city), "contains", alternatives(country), 24)


def languages(rng: random.Random) -> Iterable[Question]:
    """What most people of a country speak."""
    wordings = (
        "What is the main language of {}?",
        "Which language do most people in {} speak?",
        "What language is spoken in {}?",
    )
    for country, language in shuffled(rng, LANGUAGES):
        yield question(rng.choice(wordings).format(country), "contains", alternatives(language), 24)


def currencies(rng: random.Random) -> Iterable[Question]:
    """What one pays with in a country."""
    wordings = (
        "What is the currency of {}?",
        "Which currency is used in {}?",
        "What money do people use in {}?",
    )
    for country, money in shuffled(rng, CURRENCIES):
        yield question(rng.choice(wordings).format(country), "contains", alternatives(money), 24)


def facts(rng: random.Random) -> Iterable[Question]:
    """Common knowledge and units."""
    for asked, answer in shuffled(rng, FACTS):
        yield question(asked, "contains", alternatives(answer), 32)


def arithmetic(rng: random.Random) -> Iterable[Question]:
    """Adding, subtracting and multiplying small numbers."""
    wordings = ("What is {}?", "Calculate {}.", "How much is {}?", "{} =")
    while True:
        a, b = rng.randint(2, 20), rng.randint(2, 20)
        kind = rng.choice("+-*")
        if kind == "-":
            a, b = max(a, b) + 1, min(a, b)
        elif kind == "*":
            a, b = rng.randint(2, 10), rng.randint(2, 10)
        value = {"+": a + b, "-": a - b, "*": a * b}[kind]
        if value == b:
            continue  # echoing the question would be right
        yield question(rng.choice(wordings).format(f"{a} {kind} {b}"), "number", [str(value)], 24)


def letters(rng: random.Random) -> Iterable[Question]:
    """Doing to the letters of a word what examples show."""
    for i, (word,) in enumerate(shuffled(rng, WORDS)):
        change = (str.upper, "-".join, str.title, lambda text: text[0])[i % 4]
        words = [*(other for (other,) in rng.sample(pairs(WORDS), 4) if other != word)][:3]
        # As written, for upper and lower case are the point; only quotes or an arrow may stand before it.
        found = rf"\A(?:{word}|\W)*(?<![\w-]){re.escape(change(word))}(?![\w-])"
        yield question(by_example([(other, change(other)) for other in words], word), "regex", [found], 24)


def translation(rng: random.Random) -> Iterable[Question]:
    """A common word into French, Spanish or German, shown by example."""
    languages = ("French", "Spanish", "German")
    rows = pairs(TRANSLATIONS)
    for i, (word, *translations) in enumerate(shuffled(rng, rows)):
        column = i % 3
        accepted = alternatives(translations[column])
        if word in map(str.lower, accepted):
            continue  # echoing the question would be right
        others = rng.sample([row for row in rows if row[0] != word], 3)
        examples = [(row[0], alternatives(row[column + 1])[0]) for row in others]
        prompt = f"English to {languages[column]}:\n{by_example(examples, word)}"
        yield question(prompt, "contains", accepted, 24)


def sayings(rng: random.Random) -> Iterable[Question]:
    """The last word of a well-known phrase."""
    wordings = ("Complete the saying: {}", "Finish this well-known phrase: {}", "{}")
    for start, end in shuffled(rng, SAYINGS):
        prompt = rng.choice(wordings).format(start)
        if not re.search(rf"\b{end}\b", prompt):  # else echoing the question would be right
            yield question(prompt, "contains", [end], 24)


def sentiment(rng: random.Random) -> Iterable[Question]:
    """Whether a review praises or complains, shown by example."""
    labels = ("positive", "negative")
    texts = [
        (text, label) for label, reviews in zip(labels, REVIEWS, strict=True) for (text,) in pairs(reviews)
    ]
    for text, label in shuffled(rng, texts):
        examples = []
        for shown in shuffled(rng, [*labels, rng.choice(labels)]):
            left = [row for row in texts if row[1] == shown and row[0] != text and row not in examples]
            examples.append(rng.choice(left))
        yield question(by_example(examples, text), "choice", [label], 24, labels)


def membership(rng: random.Random) -> Iterable[Question]:
    """Which of three kinds a thing belongs to."""
    groups = [(group, member) for group, members in KINDS for (member,) in pairs(members)]
    names = [group for group, _ in KINDS]
    for group, member in shuffled(rng, groups):
        others = rng.sample([name for name in names if name != group], 2)
        options = shuffled(rng, [group, *others])
        prompt = f"What kind of thing is '{member}': {options[0]}, {options[1]} or {options[2]}?"
        yield question(prompt, "choice", [group], 24, options)


def antonyms(rng: random.Random) -> Iterable[Question]:
    """The opposite of a common word."""
    wordings = (
        "What is the opposite of '{}'?",
        "Give an antonym of the word '{}'.",
        "The opposite of '{}' is",
    )
    for word, opposite in shuffled(rng, ANTONYMS):
        yield question(rng.choice(wordings).format(word), "contains", alternatives(opposite), 24)


def counting(rng: random.Random) -> Iterable[Question]:
    """How many words a list has, shown by example."""
    names = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    words = [word for (word,) in pairs(WORDS)]
    while True:
        *shown, n = rng.sample(range(2, 8), 4)
        lists = [", ".join(rng.sample(words, size)) for size in (*shown, n)]
        examples = [(items, str(size)) for items, size in zip(lists, shown, strict=False)]
        prompt = f"Count the words.\n{by_example(examples, lists[-1])}"
        yield question(prompt, "regex", [rf"(?i)\A[^\d\n]*?\b(?:{n}|{names[n - 1]})\b"], 24)


def patterns(rng: random.Random) -> Iterable[Question]:
    """The next term of a sequence of numbers, letters or words."""
    wordings = ("Continue the sequence: {},", "{},")
    cycles = [part.split() for (part,) in pairs(CYCLES)]
    while True:
        kind = rng.randrange(4)
        if kind == 0:
            start, step = rng.randint(1, 20), rng.randint(1, 10)
            terms = [str(start + step * i) for i in range(5)]
        elif kind == 1:
            start, step = rng.randint(40, 90), rng.randint(1, 8)
            terms = [str(start - step * i) for i in range(5)]
        elif kind == 2:
            cycle = rng.choice(cycles)
            first = rng.randrange(len(cycle))
            terms = [cycle[(first + i) % len(cycle)] for i in range(5)]
        else:
            first = rng.randrange(20)
            terms = [chr(ord("A") + first + i) for i in range(5)]
        *shown, answer = terms
        # The next term comes first, or after the shown ones once more; what introduces it holds no term or
        # number.
        lead, barred = r"\W+".join(shown), "|".join(shown)
        found = rf"\A(?:(?!\b(?:{barred})\b)[^\d\n]){{0,40}}(?:{lead}\W+)?(?<!\w){answer}(?!\w)"
        yield question(rng.choice(wordings).format(", ".join(shown)), "regex", [found], 24)


def code(rng: random.Random) -> Iterable[Question]:
    """What one to three lines of Python print."""
    wordings = ("What does this Python code print?\n{}", "What is the output of this Python code?\n{}")
    while True:
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        words = [word for (word,) in rng.sample(pairs(WORDS), 3)]
        word = words[0]
        lines, printed = rng.choice(
            (
                (f"print({a} + {b})", f"{a + b}"),
                (f"x = {a}\nx = x * {b}\nprint(x)", f"{a * b}"),
                (f"print(len('{word}'))", f"{len(word)}"),
                (f"print('{word}'.upper())", word.upper()),
                (f"print('{word}' + '{words[1]}')", word + words[1]),
                (f"print({words}[1])", words[1]),
                (f"print({a} > {b})", str(a > b)),
                (f"print(max({a}, {b}, {a + 3}))", f"{max(a, b, a + 3)}"),
                (f"for i in range({min(a, 4)}):\n    print('{word}')", "\n".join([word] * min(a, 4))),
            )
        )
        # The output on its own, quoted or in prose; several lines in order. Echoing the code is no answer.
        output = r"\W+".join(rf"(?<!\w){line}(?!\w)" for line in printed.split("\n"))
        found = rf"\A(?:(?!print\(|\[)[\s\S])*?{output}"
        yield question(rng.choice(wordings).format(lines), "regex", [found], 32)


def extraction(rng: random.Random) -> Iterable[Question]:
    """One detail of a sentence that holds several."""
    people, things, places, days = (
        [item for (item,) in pairs(text)] for text in (PEOPLE, THINGS, PLACES, DAYS)
    )
    while True:
        who, other = rng.sample(people, 2)
        thing, place, day = rng.choice(things), rng.choice(places), rng.choice(days)
        price = rng.randint(3, 95)
        text = rng.choice(
            (
                f"{who} bought {thing} in {place} on {day} for {price} dollars and gave it to {other}.",
                f"{who} travelled to {place} on {day} with {other}, who paid {price} dollars for {thing}.",
                f"{who} lives in {place}. {other} came on {day} and brought {thing} worth {price} dollars.",
            )
        )
        asked, answer, wrong = rng.choice(
            (
                ("Which city is mentioned?", place, (who, other, day)),
                ("Which day of the week is mentioned?", day, (who, other, place)),
                ("How many dollars are mentioned?", str(price), (who, other, day, place)),
            )
        )
        # Repeating the sentence is no answer: what was not asked for must not stand before the answer.
        barred = "|".join(wrong)
        found = rf"\A(?:(?!\b(?:{barred})\b)[^\n])*\b{answer}\b"
        yield question(f"{text} {asked} Answer briefly.", "regex", [found], 24)


def by_example(examples: Iterable[tuple[str, str]], asked: str) -> str:
    """Worked examples, one a line, and one line left open."""
    return "\n".join([*(f"{given} -> {wanted}" for given, wanted in examples), f"{asked} ->"])


def shuffled(rng: random.Random, items: str | Iterable[Any]) -> list[Any]:
    """The items, of an authored list or any other, in random order."""
    listed = pairs(items) if isinstance(items, str) else list(items)
    rng.shuffle(listed)
    return listed


# The authored lists.

CAPITALS = """
France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; Austria=Vienna; Poland=Warsaw
Greece=Athens; Hungary=Budapest; Sweden=Stockholm; Norway=Oslo; Finland=Helsinki; Denmark=Copenhagen
Ireland=Dublin; Belgium=Brussels; the Netherlands=Amsterdam; Switzerland=Bern; Russia=Moscow
Ukraine=Kyiv|Kiev; Turkey=Ankara; Egypt=Cairo; Kenya=Nairobi; Nigeria=Abuja; Ethiopia=Addis Ababa
Morocco=Rabat; Ghana=Accra; Senegal=Dakar; Japan=Tokyo; China=Beijing; India=New Delhi|Delhi
South Korea=Seoul; Thailand=Bangkok; Vietnam=Hanoi; Indonesia=Jakarta; the Philippines=Manila
Malaysia=Kuala Lumpur; Pakistan=Islamabad; Bangladesh=Dhaka; Nepal=Kathmandu; Iran=Tehran; Iraq=Baghdad
Saudi Arabia=Riyadh; Lebanon=Beirut; Jordan=Amman; Afghanistan=Kabul; Canada=Ottawa; Mexico=Mexico City
Cuba=Havana; Jamaica=Kingston; Brazil=Brasília|Brasilia; Argentina=Buenos Aires; Chile=Santiago
Peru=Lima; Colombia=Bogotá|Bogota; Ecuador=Quito; Uruguay=Montevideo; Venezuela=Caracas
Australia=Canberra; New Zealand=Wellington; Iceland=Reykjavik|Reykjavík; Romania=Bucharest
Bulgaria=Sofia; Serbia=Belgrade; Croatia=Zagreb; Czechia=Prague
"""

FACTS = """
How many minutes are in an hour?=60|sixty
How many seconds are in a minute?=60|sixty
How many hours are in a day?=24|twenty-four
How many days are in a week?=7|seven
How many months are in a year?=12|twelve
How many days are in a leap year?=366
How many centimetres are in a metre?=100|one hundred|hundred
How many grams are in a kilogram?=1000|1,000|one thousand
How many metres are in a kilometre?=1000|1,000|one thousand
How many inches are in a foot?=12|twelve
How many legs does a spider have?=8|eight
How many legs does an insect have?=6|six
How many sides does a triangle have?=3|three
How many sides does a hexagon have?=6|six
How many sides does an octagon have?=8|eight
How many wheels does a bicycle have?=2|two
How many continents are there on Earth?=7|seven
How many planets are in the solar system?=8|eight
How many letters are in the English alphabet?=26|twenty-six
How many years are in a century?=100|one hundred|hundred
How many years are in a decade?=10|ten
How many degrees are in a right angle?=90|ninety
How many degrees are in a circle?=360
At how many degrees Celsius does water boil?=100|one hundred
At how many degrees Celsius does water freeze?=0|zero
How many strings does a violin have?=4|four
How many players of one team are on the field in football (soccer)?=11|eleven
What is the chemical symbol for gold?=Au
What is the chemical formula of water?=H2O|H₂O
What is the chemical symbol for oxygen?=O|O2
What is the chemical symbol for iron?=Fe
Which gas do plants take in from the air for photosynthesis?=carbon dioxide|CO2
What is the largest planet in the solar system?=Jupiter
Which planet is closest to the Sun?=Mercury
Which planet is known as the Red Planet?=Mars
What is the largest ocean on Earth?=Pacific
What is the longest river in Africa?=Nile
What is the highest mountain on Earth?=Everest
What is the largest mammal?=blue whale|whale
What is the fastest land animal?=cheetah
Which animal is known as the king of the jungle?=lion
What is the tallest animal in the world?=giraffe
What do bees make?=honey
What is frozen water called?=ice
Which star is closest to the Earth?=Sun
Who wrote the play 'Romeo and Juliet'?=Shakespeare
Who painted the Mona Lisa?=Leonardo|da Vinci
Who developed the theory of relativity?=Einstein
Who was the first president of the United States?=Washington
Who was the first person to walk on the Moon?=Armstrong
In which country are the pyramids of Giza?=Egypt
In which city is the Eiffel Tower?=Paris
In which country is the Great Wall?=China
In which country is the Taj Mahal?=India
Which language is spoken in Brazil?=Portuguese
What is the currency of Japan?=yen
What is the currency of the United Kingdom?=pound|sterling
Which organ pumps blood through the body?=heart
Which organ do people use to see?=eye|eyes
What colour do you get by mixing blue and yellow?=green
What colour do you get by mixing red and white?=pink
Which season comes after winter?=spring
Which day comes after Monday?=Tuesday
Which month comes after June?=July
What is a baby dog called?=puppy|pup
What is a baby cat called?=kitten
"""

WORDS = """
garden; window; silver; planet; yellow; bridge; candle; doctor; forest; guitar; hammer; island; jacket
kitchen; ladder; market; needle; orange; pencil; rabbit; school; ticket; valley; winter; basket; camera
desert; engine; farmer; ground; harbor; insect; jungle; kettle; lemon; mirror; napkin; ocean; pepper
quilt; river; saddle; tunnel; umbrella; violin; wagon; blanket; carpet; dragon; elbow; feather; glove
honey; infant; jewel; lantern; monkey; nurse; oyster; pillow
"""

TRANSLATIONS = """
house=maison=casa=Haus; water=eau=agua=Wasser; bread=pain=pan=Brot; dog=chien=perro=Hund
cat=chat=gato=Katze; book=livre=libro=Buch; friend=ami|amie=amigo|amiga=Freund|Freundin
sun=soleil=sol=Sonne; moon=lune=luna=Mond; tree=arbre=árbol=Baum; milk=lait=leche=Milch
red=rouge=rojo|roja=rot; green=vert|verte=verde=grün; white=blanc|blanche=blanco|blanca=weiß|weiss
black=noir|noire=negro|negra=schwarz; day=jour|journée=día=Tag; night=nuit=noche=Nacht
school=école=escuela=Schule; mother=mère=madre=Mutter; father=père=padre=Vater
brother=frère=hermano=Bruder; sister=sœur|soeur=hermana=Schwester; fish=poisson=pez|pescado=Fisch
bird=oiseau=pájaro|ave=Vogel; horse=cheval=caballo=Pferd; apple=pomme=manzana=Apfel
cheese=fromage=queso=Käse; city=ville=ciudad=Stadt; street=rue=calle=Straße|Strasse
door=porte=puerta=Tür; window=fenêtre=ventana=Fenster; hand=main=mano=Hand; head=tête=cabeza=Kopf
heart=cœur|coeur=corazón=Herz; eye=œil|oeil=ojo=Auge; big=grand|grande|gros=grande=groß|gross
small=petit|petite=pequeño|pequeña=klein; good=bon|bonne|bien=bueno|buena=gut
new=nouveau|nouvelle|neuf=nuevo|nueva=neu; thank you=merci=gracias=danke; hello=bonjour|salut=hola=hallo
yes=oui=sí=ja; woman=femme=mujer=Frau; one=un|une=uno|una=eins|ein; two=deux=dos=zwei
three=trois=tres=drei; ten=dix=diez=zehn; winter=hiver=invierno=Winter; summer=été=verano=Sommer
snow=neige=nieve=Schnee; rain=pluie=lluvia=Regen; fire=feu=fuego=Feuer; flower=fleur=flor=Blume
child=enfant=niño|niña=Kind; king=roi=rey=König; time=temps=tiempo=Zeit; year=an|année=año=Jahr
car=voiture=coche|carro|auto=Auto; road=route|chemin=camino|carretera=Straße|Weg|Strasse
chair=chaise=silla=Stuhl
"""

SAYINGS = """
Better late than=never; Actions speak louder than=words; A picture is worth a thousand=words
Practice makes=perfect; The early bird catches the=worm; Don't judge a book by its=cover
Two heads are better than=one; Time is=money; When in Rome, do as the Romans=do
Honesty is the best=policy; All that glitters is not=gold; Blood is thicker than=water
Every cloud has a silver=lining; Rome wasn't built in a=day; Where there's smoke, there's=fire
Easy come, easy=go; An apple a day keeps the doctor=away; Don't count your chickens before they=hatch
You can't teach an old dog new=tricks; The pen is mightier than the=sword; Two wrongs don't make a=right
Where there's a will, there's a=way; Birds of a feather flock=together; Curiosity killed the=cat
Knowledge is=power; Laughter is the best=medicine; Too many cooks spoil the=broth
What goes around comes=around; The grass is always greener on the other=side
A penny saved is a penny=earned; If at first you don't succeed, try, try=again; Great minds think=alike
Beauty is in the eye of the=beholder; Better safe than=sorry; Out of sight, out of=mind
Home is where the heart=is; The more, the=merrier; No pain, no=gain
Hope for the best, prepare for the=worst; Ignorance is=bliss; Let sleeping dogs=lie
Look before you=leap; Money doesn't grow on=trees; Necessity is the mother of=invention
Once upon a=time; To be or not to=be; Twinkle, twinkle, little=star; Mary had a little=lamb
Happy birthday to=you; Ladies and=gentlemen; Last but not=least; Once bitten, twice=shy
Slow and steady wins the=race; Haste makes=waste; The apple doesn't fall far from the=tree
When it rains, it=pours; You reap what you=sow; Strike while the iron is=hot
Absence makes the heart grow=fonder; There is no place like=home; Good things come to those who=wait
"""

REVIEWS = (
    """
I loved every minute of this film; The staff were friendly and the room was spotless
Best pizza I have had in years; The phone is fast and the battery lasts for days
A wonderful book that I could not put down; Great value for the price
The concert was amazing from start to finish; My children adore this toy
Delivery was quick and the packing was perfect; The soup was delicious and the service excellent
I would happily stay here again; This lamp looks beautiful on my desk
The actors were brilliant and the story moving; Comfortable shoes, I wear them every day
A charming hotel with a superb view; The teacher explained everything clearly and kindly
It works perfectly and was easy to set up; What a delightful evening
Fresh food, generous portions, warm welcome; The garden tour was a real highlight of our trip
I am very happy with this purchase; The sound quality is outstanding
A gripping novel with a satisfying end; The bike rides smoothly and feels solid
Friendly driver and a very clean car; This cream made my skin soft and healthy
The museum was fascinating and well organised; Simply the best coffee in town
The repair was done quickly and well
""",
    """
I hated this film and left after half an hour; The room was dirty and the staff were rude
The pizza was cold and tasteless; The phone broke after two days; A boring book that I could not finish
Far too expensive for such poor quality; The concert was a terrible disappointment
The toy fell apart within an hour; The parcel arrived late and damaged
The soup was salty and the waiter ignored us; I will never stay here again
This lamp flickers and smells of burning; The acting was awful and the story made no sense
These shoes hurt my feet; A noisy hotel with broken heating; The teacher was impatient and confusing
It never worked and support did not answer; What a waste of an evening
Stale food, tiny portions, unfriendly waiters; The tour was badly planned and dull; I regret buying this
The sound is tinny and full of noise; The plot is predictable and the ending is awful
The bike squeaks and the brakes fail; The driver was late and drove dangerously
This cream gave me a painful rash; The museum was overpriced and half of it was closed
The coffee tasted like dirty water; They broke my watch instead of fixing it
""",
)

KINDS = (
    ("fruit", "banana; grape; peach; mango; cherry; pear; strawberry"),
    ("vegetable", "carrot; spinach; broccoli; cabbage; onion; lettuce; cauliflower"),
    ("bird", "eagle; sparrow; penguin; owl; parrot; pigeon; duck"),
    ("fish", "salmon; trout; tuna; shark; cod; herring; carp"),
    ("mammal", "tiger; elephant; cow; wolf; bear; rabbit; mouse"),
    ("insect", "ant; beetle; butterfly; mosquito; bee; grasshopper; moth"),
    ("tool", "hammer; screwdriver; saw; wrench; drill; chisel; pliers"),
    ("vehicle", "bus; truck; bicycle; tram; motorcycle; van; taxi"),
    ("musical instrument", "piano; flute; trumpet; drum; cello; harp; clarinet"),
)

ANTONYMS = """
hot=cold|cool; big=small|little|tiny; fast=slow; happy=sad|unhappy; up=down; open=closed|close|shut
light=dark|heavy; early=late; full=empty; hard=soft|easy; high=low; long=short; loud=quiet|soft; new=old
rich=poor; strong=weak; tall=short; thick=thin; true=false; wet=dry; young=old; clean=dirty
cheap=expensive|dear; brave=cowardly|afraid|fearful; inside=outside; above=below|under; first=last
begin=end|finish; win=lose; buy=sell; give=take|receive; push=pull; love=hate; remember=forget
laugh=cry; arrive=leave|depart; ask=answer; build=destroy|demolish; black=white; day=night
summer=winter; north=south; east=west; left=right; friend=enemy|foe; front=back|rear; peace=war
life=death; success=failure; victory=defeat; wide=narrow; deep=shallow; sharp=blunt|dull; smooth=rough
sweet=sour|bitter; near=far|distant; safe=dangerous|unsafe; simple=complex|complicated|difficult
polite=rude|impolite; generous=stingy|selfish|mean|greedy; ancient=modern|new; guilty=innocent
increase=decrease|reduce; accept=reject|refuse
"""

CITIES = """
Munich=Germany; Lyon=France; Barcelona=Spain; Milan=Italy; Porto=Portugal; Kyoto=Japan; Shanghai=China
Mumbai=India; Karachi=Pakistan; Istanbul=Turkey|Türkiye; Alexandria=Egypt; Casablanca=Morocco; Lagos=Nigeria
Mombasa=Kenya; Cape Town=South Africa; São Paulo=Brazil; Rosario=Argentina; Valparaíso=Chile; Medellín=Colombia
Guayaquil=Ecuador; Cusco=Peru; Cancún=Mexico; Toronto=Canada; Vancouver=Canada; Sydney=Australia
Melbourne=Australia; Auckland=New Zealand; Manchester=England|United Kingdom|UK; Glasgow=Scotland|United Kingdom
Cork=Ireland; Antwerp=Belgium; Rotterdam=Netherlands; Zurich=Switzerland; Salzburg=Austria; Gothenburg=Sweden
Bergen=Norway; Aarhus=Denmark; Tampere=Finland; Kraków=Poland; Brno=Czech; Thessaloniki=Greece; Odesa=Ukraine
Saint Petersburg=Russia; Haifa=Israel; Jeddah=Saudi Arabia; Dubai=Emirates|UAE; Basra=Iraq; Isfahan=Iran
Busan=Korea; Osaka=Japan; Chiang Mai=Thailand; Da Nang=Vietnam; Cebu=Philippines; Surabaya=Indonesia
Penang=Malaysia; Mandalay=Myanmar|Burma; Chittagong=Bangladesh; Kandy=Sri Lanka; Houston=United States|USA|Texas
Chicago=United States|USA|Illinois; Santa Cruz de la Sierra=Bolivia; Kumasi=Ghana; Split=Croatia
"""

LANGUAGES = """
Brazil=Portuguese; Mexico=Spanish; Argentina=Spanish; Chile=Spanish; Cuba=Spanish; Austria=German; Egypt=Arabic
Iraq=Arabic; Morocco=Arabic; Saudi Arabia=Arabic; Jordan=Arabic; Algeria=Arabic; Iran=Persian|Farsi
Israel=Hebrew; Turkey=Turkish; Greece=Greek; Italy=Italian; Portugal=Portuguese; Spain=Spanish; France=French
Germany=German; the Netherlands=Dutch; Poland=Polish; Hungary=Hungarian; Romania=Romanian; Bulgaria=Bulgarian
Russia=Russian; Ukraine=Ukrainian; Sweden=Swedish; Norway=Norwegian; Denmark=Danish; Finland=Finnish
Iceland=Icelandic; Estonia=Estonian; Latvia=Latvian; Lithuania=Lithuanian; Croatia=Croatian; Serbia=Serbian
Slovakia=Slovak; Slovenia=Slovene|Slovenian; Albania=Albanian; Georgia (the country)=Georgian
Armenia=Armenian; Japan=Japanese; South Korea=Korean; China=Chinese|Mandarin; Taiwan=Chinese|Mandarin
Vietnam=Vietnamese; Thailand=Thai; Cambodia=Khmer; Laos=Lao; Indonesia=Indonesian; Malaysia=Malay
Bangladesh=Bengali|Bangla; Nepal=Nepali; Mongolia=Mongolian; Australia=English; New Zealand=English
Jamaica=English; Angola=Portuguese; Senegal=French|Wolof; Ethiopia=Amharic; Peru=Spanish; Venezuela=Spanish
"""

CURRENCIES = """
Japan=yen; China=yuan|renminbi; India=rupee; Pakistan=rupee; Nepal=rupee; Sri Lanka=rupee; Russia=ruble|rouble
Ukraine=hryvnia; Poland=zloty|złoty; the Czech Republic=koruna|crown; Hungary=forint; Romania=leu
Bulgaria=lev|euro; Sweden=krona; Norway=krone; Denmark=krone; Iceland=krona|króna; Switzerland=franc
Germany=euro; France=euro; Italy=euro; Spain=euro; Greece=euro; Ireland=euro; the United Kingdom=pound|sterling
Turkey=lira; Israel=shekel; Egypt=pound; Saudi Arabia=riyal; Iran=rial; Iraq=dinar; Kuwait=dinar; Jordan=dinar
the United Arab Emirates=dirham; Morocco=dirham; South Africa=rand; Nigeria=naira; Kenya=shilling; Ghana=cedi
Ethiopia=birr; Tanzania=shilling; Brazil=real; Argentina=peso; Chile=peso; Mexico=peso; Colombia=peso
Peru=sol; Canada=dollar; Australia=dollar; New Zealand=dollar; Singapore=dollar; Thailand=baht; Vietnam=dong
Malaysia=ringgit; Indonesia=rupiah; the Philippines=peso; South Korea=won; Bangladesh=taka; Mongolia=tugrik|tögrög
Georgia (the country)=lari; Armenia=dram; Zambia=kwacha; Cambodia=riel
"""

CYCLES = """
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
January February March April May June July August September October November December
one two three four five six seven eight nine ten
do re mi fa so la ti
"""

PEOPLE = (
    "Maria; Ahmed; Chen; Olga; Peter; Amara; Lucas; Ingrid; Yusuf; Hannah; Diego; Priya; Marek; Sofia; Kenji"
)
THINGS = "a lamp; a red scarf; an old map; a wooden chair; a camera; a box of tea; a silver ring"
PLACES = "Lisbon; Nairobi; Oslo; Toronto; Kyoto; Lima; Prague; Cairo; Dublin; Seoul; Warsaw; Athens; Hanoi"
DAYS = "Monday; Tuesday; Wednesday; Thursday; Friday; Saturday; Sunday"

CATEGORIES: dict[str, Callable[[random.Random], Iterable[Question]]] = {
    "capitals": capitals,
    "cities": cities,
    "languages": languages,
    "currencies": currencies,
    "facts": facts,
    "arithmetic": arithmetic,
    "letters": letters,
    "translation": translation,
    "sayings": sayings,
    "sentiment": sentiment,
    "membership": membership,
    "antonyms": antonyms,
    "counting": counting,
    "patterns": patterns,
    "code": code,
    "extraction": extraction,
}


def generate() -> str:
    """The query set as JSON lines; the same on every machine."""
    lines = []
    for category, make in CATEGORIES.items():
        # A generator of its own for each category, so that editing one leaves the others as they are.
        rng = random.Random(f"{SEED} {category}")
        kept: dict[str, Question] = {}
        for record in make(rng):
            kept.setdefault(record["prompt"], record)
            if len(kept) == EACH:
                break
        if len(kept) < EACH:
            raise ValueError(f"{category} has only {len(kept)} different questions")
        for number, record in enumerate(kept.values(), 1):
            named = {"id": f"{category}-{number:03d}", "category": category, **record}
            lines.append(json.dumps(named, ensure_ascii=False))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("everyday.jsonl").write_text(generate(), encoding="utf-8")
