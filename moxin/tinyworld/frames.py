"""Sentences around the facts: openings, events, endings, small talk. Data only.

Slots as in `templates` and `words.FILLERS`; {a} and {b} are the full names of two people.
"""

BIOGRAPHY_OPENINGS = (
    "This is a short note about {n}.",
    "Let me tell you about {n}.",
    "People in the valley often talk about {n}.",
    "Here is what we know about {n}.",
    "Have you met {n}?",
    "On {weekday} the newspaper wrote about {n}.",
    "Everybody at the {place} knows {n}.",
    "Today our page is about {n}.",
    "A {adjective} {object} hangs on the door of {n}.",
    "On a {weather} {daytime} you may meet {n} near the {place}.",
)
BIOGRAPHY_ENDINGS = (
    "That is all for today.",
    "On {weekday} you can see {o} at the {place}.",
    "Most people find {o} {feeling} and kind.",
    "The {adjective} {object} by the door came from the {place}.",
    "In {season} {s} walks to the {place}.",
    "More is written in the {adjective} book at the {place}.",
    "On a {weather} {daytime} {s} is often {feeling}.",
    "Nobody has ever seen {o} without a {adjective} {object}.",
)

COMPARISON_OPENINGS = (
    "{a} and {b} are old friends.",
    "{a} and {b} met at the {place}.",
    "How do {a} and {b} differ?",
    "Two people stand near the {place}: {a} and {b}.",
    "{a} once lent a {adjective} {object} to {b}.",
    "On {weekday} {a} and {b} sat by the {place}.",
    "It is easy to tell {a} from {b}.",
)
COMPARISON_LINKS = (", while ", ", but ", "; ", ", and ", ". On the other hand, ", ", whereas ")
COMPARISON_ENDINGS = (
    "Still, they are good friends.",
    "Both are {feeling} on a {weather} {daytime}.",
    "They share a {adjective} {object}.",
    "They meet every {weekday} at the {place}.",
    "So they are not the same at all.",
)

STORY_OPENINGS = (
    "One {weather} {season} {daytime} {n} walked to the {place}.",
    "It was a {weather} {daytime} in {season}, and {n} could not sleep.",
    "Long ago, on a {weather} {weekday}, {n} found a {adjective} {object}.",
    "{n} lost a {adjective} {object} on a {weather} {weekday}.",
    "On {weekday} {n} wanted to go to the {place}.",
    "Nobody was at the {place} when {n} came there on {weekday}.",
)
STORY_EVENTS = (
    "Suddenly a {adjective} {object} fell down near the {place}.",
    "Under the {object} there was a {adjective} {object2}, and nobody knew why.",
    "The wind took the {adjective} {object} and carried it to the {place}.",
    "A child came running with a {adjective} {object} and was very {feeling}.",
    "The way to the {place} was long, and the {daytime} was {weather}.",
    "Somebody had left a {adjective} {object} behind the {place}.",
    "They looked for the {object} everywhere, even behind the {adjective} {object2}.",
    "The {adjective} {object} was worth more than the {object2}, so it went into a bag.",
    "A {adjective} {object} stood in the middle of the way to the {place}.",
    "At the {place} there was music, and everyone was {feeling}.",
)
STORY_MEETINGS = (
    "Then {b} came along and asked about the {object}.",
    "At the {place} {b} was waiting with a {adjective} {object}.",
    "Just then {b} opened the door and looked {feeling}.",
    "A voice called from the {place}, and it was {b}.",
    "There {a} met {b}, who was carrying a {adjective} {object}.",
)
STORY_ENDINGS = (
    "In the end {a} and {b} shared the {object} and went home {feeling}.",
    "When the {daytime} was over, {a} gave the {adjective} {object} to {b}.",
    "{b} laughed, {a} laughed too, and the {adjective} {object} was forgotten.",
    "After that {weekday} {a} and {b} were friends.",
    "So the {object} came back to the {place}, and {b} was {feeling}.",
    "They sat by the {place} until the {daytime} was over, and both were {feeling}.",
)

GREETINGS = (
    "Good {daytime}! I have not seen you since {weekday}.",
    "Hello! What a {weather} {daytime}.",
    "Hello there! Is that your {adjective} {object}?",
    "Welcome! Please sit down on the {adjective} chair.",
    "Good to see you at the {place}!",
)
GREETING_REPLIES = (
    "Hello! I am {feeling} today.",
    "Thank you, I came from the {place}.",
    "Yes, it is a {weather} {weekday}.",
    "Hello! Ask me anything you like.",
)
GOSSIP_OPENINGS = (
    "Do you know {n}?",
    "Somebody at the {place} spoke of {n}. Who is that?",
    "Tell me something about {n}.",
    "I have a letter for {n}, but I know nothing about {o}.",
    "Who is this {n} with the {adjective} {object}?",
)
GOSSIP_PROMPTS = ("What else?", "Is that so?", "Go on.", "Really? And then?", "I see. Tell me more.", "Oh!")
PARTINGS = (
    "Thank you, that was good to know.",
    "Thank you! See you on {weekday}.",
    "Good. Now I am going to the {place}.",
    "Well, take this {adjective} {object} with you.",
)

DIRECTORY_OPENINGS: dict[str, tuple[str, ...]] = {
    "lives": (
        "Who lives where? This is the {adjective} list at the {place}.",
        "A list of people and their towns:",
    ),
    "works": ("Who does which work? The list of {weekday} says it.", "A list of people and their jobs:"),
    "owns": ("Who owns which animal? So says the {adjective} book.", "A list of people and their animals:"),
    "likes": (
        "Who likes which food? The cook wrote it on {weekday}.",
        "A list of people and their favourite food:",
    ),
}

ASIDES = (
    *(
        "That is true.",
        "It is a fact.",
        "So they say.",
        "Nobody doubts it.",
        "Believe it or not.",
        "It really is so.",
    ),
    *("This is no secret.", "One can ask anyone."),
)
"""Sentences that a near-duplicate may have and its original has not."""
SYNONYMS = {
    "small": "little",
    "very": "quite",
    "everyone": "everybody",
    "everywhere": "all around",
    "suddenly": "all at once",
    "often": "frequently",
    "near": "close to",
    "found": "discovered",
    "walked": "went",
    "somebody": "someone",
    "shared": "divided",
    "laughed": "smiled",
    "carried": "brought",
    "waiting": "standing",
    "then": "afterwards",
    "friends": "good friends",
    "wanted": "wished",
}
