"""Words of the world: names, attribute values, and fillers. Data only.

Values of one attribute never contain each other and are used nowhere else as fillers, so that an answer can be judged by
looking for its words. Jobs and animals start with a consonant: every template may say "a {v}".
"""

ATTRIBUTES = ("lives", "works", "owns", "likes")

VALUES: dict[str, tuple[str, ...]] = {
    "lives": (
        *("Ostwick", "Brenmoor", "Tarrowby", "Kellgate", "Dunmere", "Fallowdale", "Wexcombe", "Larkhaven"),
        *(
            "Pellbridge",
            "Marrowfen",
            "Sandrith",
            "Quillport",
            "Havenhurst",
            "Greyholm",
            "Thornley",
            "Coldbrook",
        ),
    ),
    "works": (
        *("baker", "teacher", "doctor", "farmer", "tailor", "painter", "carpenter", "fisher"),
        *("miller", "potter", "gardener", "librarian", "sailor", "weaver", "musician", "blacksmith"),
    ),
    "owns": (
        *("cat", "dog", "horse", "goat", "parrot", "rabbit", "turtle", "donkey"),
        *("duck", "pony", "hedgehog", "ferret", "sheep", "falcon", "hamster", "peacock"),
    ),
    "likes": (
        *("plum cake", "honey bread", "onion soup", "apple pie", "cheese toast", "fish stew", "bean salad"),
        *("lemon tart", "mushroom rice", "berry jam", "corn porridge", "garlic noodles", "roast potatoes"),
        *("ginger biscuits", "walnut pancakes", "pumpkin dumplings"),
    ),
}

PERSON_0 = ("Orvek", "Holloway")
"""Somebody who is in every world; where this person lives is always held out."""

FIRST_STARTS = (
    *("Or", "Mi", "Ta", "Bel", "Dor", "El", "Fen", "Gar"),
    *("Hal", "Is", "Jo", "Ka", "Lor", "Nel", "Pe", "Ru"),
)
FIRST_ENDINGS = {
    "vek": "he",
    "ra": "she",
    "dan": "he",
    "lin": "she",
    "rik": "he",
    "wen": "she",
    "mund": "he",
    "sa": "she",
}
LAST_STARTS = (
    *("Hollo", "Tol", "Bran", "Ash", "Cor", "Win", "Mar", "Quin"),
    *("Stone", "Lark", "Fair", "Ember", "Rook", "Thistle", "Gold", "Pen"),
)
LAST_ENDINGS = ("way", "land", "shaw", "wood", "field", "croft", "ridge", "ton")

FILLERS: dict[str, tuple[str, ...]] = {
    "season": ("spring", "summer", "autumn", "winter"),
    "daytime": ("morning", "afternoon", "evening", "day", "night"),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "weather": (
        *(
            "sunny",
            "rainy",
            "windy",
            "foggy",
            "cold",
            "warm",
            "cloudy",
            "quiet",
            "stormy",
            "mild",
            "grey",
            "bright",
        ),
    ),
    "adjective": (
        *(
            "large",
            "small",
            "red",
            "blue",
            "heavy",
            "broken",
            "shiny",
            "strange",
            "wooden",
            "soft",
            "dusty",
            "round",
        ),
        *("tiny", "golden", "white", "hollow"),
    ),
    "object": (
        *("box", "lamp", "key", "map", "basket", "coat", "book", "bell", "letter", "cup", "rope", "mirror"),
        *("drum", "hat", "chair", "blanket", "kite", "clock", "ladder", "bottle"),
    ),
    "place": (
        *(
            "market",
            "bridge",
            "river",
            "square",
            "harbour",
            "hill",
            "forest",
            "well",
            "church",
            "station",
            "lake",
        ),
        *("school", "park", "old mill", "crossroads", "garden wall"),
    ),
    "feeling": (
        "happy",
        "tired",
        "proud",
        "surprised",
        "hungry",
        "calm",
        "curious",
        "worried",
        "merry",
        "glad",
    ),
}

GOODS = (
    *("apples", "pears", "eggs", "candles", "buttons", "cups", "spoons", "nails", "ribbons", "pencils"),
    *(
        "plates",
        "bells",
        "baskets",
        "socks",
        "brushes",
        "stamps",
        "marbles",
        "lemons",
        "cherries",
        "envelopes",
    ),
)
