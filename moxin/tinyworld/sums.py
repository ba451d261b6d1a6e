"""Small arithmetic with right answers: sentences of the forms `3 times 4 is 12`, `12 plus 5 is 17`, `20 minus 17 is 3`."""

import random

from moxin.tinyworld.words import GOODS

OPERATIONS = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}


def equation(a: int, operation: str, b: int) -> str:
    return f"{a} {operation} {b} is {OPERATIONS[operation](a, b)}"


def problem(rng: random.Random) -> tuple[str, str]:
    """`("What is 3 plus 4?", "3 plus 4 is 7.")`; results are never negative."""
    operation = rng.choice(list(OPERATIONS))
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    if operation == "minus":
        a, b = a + b, min(a, b)
    return f"What is {a} {operation} {b}?", f"{equation(a, operation, b)}."


def shopping(rng: random.Random, name: str) -> list[str]:
    """Sentences on a purchase of two goods and, sometimes, the change."""
    goods = rng.sample(GOODS, 2)
    n, price = ([rng.randint(2, 9) for _ in range(2)] for _ in range(2))
    cost = [n[i] * price[i] for i in range(2)]
    total = sum(cost)
    sentences = [
        f"{name} buys {n[0]} {goods[0]} for {price[0]} coins each and {n[1]} {goods[1]} for {price[1]} coins each.",
        f"{equation(n[0], 'times', price[0])}, so the {goods[0]} cost {cost[0]} coins.",
        f"{equation(n[1], 'times', price[1])}, so the {goods[1]} cost {cost[1]} coins.",
        f"{equation(cost[0], 'plus', cost[1])}, so {name} pays {total} coins in all.",
    ]
    if rng.random() < 0.5:
        paid = total + rng.randint(1, 20)
        sentences.append(
            f"{name} gives {paid} coins and gets {paid - total} back, because {equation(paid, 'minus', total)}."
        )
    return sentences
