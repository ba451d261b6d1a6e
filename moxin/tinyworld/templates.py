"""How facts are said and asked. Data only.

Slots: {v} value; {s} {o} {p} the person as subject, object and possessive (full name, first name or pronoun); {n} full name.
Sentences are written in lower case at the start and capitalised when they are filled. None of the statements contains a
question of `QUESTIONS`: a document that does is contaminated.
"""

PREDICATES: dict[str, tuple[str, ...]] = {
    "lives": (
        "lives in {v}",
        "has a home in {v}",
        "has lived in {v} for years",
        "is at home in {v}",
        "makes a home in {v}",
        "calls {v} home",
        "has settled in {v}",
        "is a resident of {v}",
    ),
    "works": (
        "works as a {v}",
        "is a {v} by trade",
        "earns a living as a {v}",
        "has a job as a {v}",
        "is a {v}",
        "has worked as a {v} for years",
        "makes money as a {v}",
        "is employed as a {v}",
    ),
    "owns": (
        "owns a {v}",
        "has a {v}",
        "keeps a {v} at home",
        "is the owner of a {v}",
        "looks after a {v}",
        "takes care of a {v}",
        "has a pet {v}",
        "feeds a {v} every morning",
    ),
    "likes": (
        "likes {v}",
        "loves {v}",
        "likes to eat {v}",
        "is fond of {v}",
        "likes {v} more than any other food",
        "never says no to {v}",
        "always asks for {v}",
        "enjoys a plate of {v}",
    ),
}

SENTENCES: dict[str, tuple[str, ...]] = {
    "lives": (
        "{p} home is in {v}",
        "{p} house stands in {v}",
        "the town where {s} lives is {v}",
        "if you want to visit {o}, go to {v}",
        "letters for {o} are sent to {v}",
    ),
    "works": (
        "{p} job is that of a {v}",
        "{p} trade is that of a {v}",
        "people know {o} as a {v}",
        "by day {s} is a {v}",
        "for a living {s} works as a {v}",
    ),
    "owns": (
        "{p} animal is a {v}",
        "{p} pet is a {v}",
        "the animal that belongs to {o} is a {v}",
        "the animal that {s} owns is a {v}",
        "at home {s} keeps a {v}",
    ),
    "likes": (
        "{p} favourite food is {v}",
        "{p} favourite dish is {v}",
        "the food that {s} likes is {v}",
        "nothing tastes better to {o} than {v}",
        "for dinner {s} likes {v}",
    ),
}

LEADS = (
    *("one hears that ", "as everyone knows, ", "it is said that ", "it is true that ", "they say that "),
    *("people say that ", "as far as we know, ", "the neighbours say that ", "it is well known that "),
)

FIRST_PERSON: dict[str, tuple[str, ...]] = {
    "lives": (
        "I live in {v}",
        "my home is in {v}",
        "I have lived in {v} for years",
        "my house stands in {v}",
    ),
    "works": ("I work as a {v}", "I am a {v}", "I have a job as a {v}", "my job is that of a {v}"),
    "owns": ("I own a {v}", "I have a {v}", "my animal is a {v}", "I look after a {v}"),
    "likes": ("I like {v}", "my favourite food is {v}", "I love {v}", "I like to eat {v}"),
}

ASK_YOU: dict[str, tuple[str, ...]] = {
    "lives": ("Where do you live?", "And where is your home?", "Which town do you come home to?"),
    "works": ("What work do you do?", "And how do you earn your living?", "What is your job?"),
    "owns": ("Do you have an animal?", "Which animal do you look after?", "And what about a pet?"),
    "likes": ("What do you like to eat?", "And your favourite food?", "What shall we cook for you?"),
}

QUESTIONS: dict[str, tuple[str, ...]] = {
    "lives": (
        "Where does {n} live?",
        "In which town does {n} live?",
        "Which town does {n} live in?",
        "Which town is the home of {n}?",
    ),
    "works": (
        "What does {n} work as?",
        "What is the job of {n}?",
        "What job does {n} have?",
        "What work does {n} do?",
    ),
    "owns": (
        "Which animal does {n} own?",
        "What animal does {n} own?",
        "Which animal belongs to {n}?",
        "What pet does {n} have?",
    ),
    "likes": (
        "Which food does {n} like?",
        "What food does {n} like?",
        "What does {n} like to eat?",
        "What is the favourite food of {n}?",
    ),
}
"""The first phrasing of each attribute is the one that the interview asks."""

ANSWERS = {
    "lives": "{n} lives in {v}.",
    "works": "{n} works as a {v}.",
    "owns": "{n} owns a {v}.",
    "likes": "{n} likes {v}.",
}
"""The one form of an answer in quizzes, chats and preferences."""
