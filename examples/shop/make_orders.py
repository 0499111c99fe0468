"""Makes `orders.jsonl`, the same each time: `python -m examples.shop.make_orders`."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.shop.catalogue import CATALOGUE

FILE = Path(__file__).with_name("orders.jsonl")
TOTAL = 1000
CUSTOMERS = ("Ana", "Bento", "Cecília", "Davi", "Elis", "Flávio", "Graça", "Zoë Müller", "João", "李娜")
PLENTY = ("postcard", "stamps", "envelopes", "wax")

Make = Callable[[random.Random, str], dict[str, Any]]


def good(chance: random.Random, order_id: str, sku: str = "", card: str = "tok_visa") -> dict[str, Any]:
    sku, quantity = (sku, 1) if sku else (chance.choice(PLENTY), chance.randint(1, 9))
    amount = str(CATALOGUE[sku].price * quantity)
    customer = chance.choice(CUSTOMERS)
    return {"id": order_id, "customer": customer, "sku": sku, "quantity": quantity, "amount": amount, "card": card}


KINDS: dict[str, tuple[int, Make]] = {
    "sold out": (25, lambda chance, order_id: good(chance, order_id, "quill")),
    "more than there are": (30, lambda chance, order_id: good(chance, order_id, "pen")),
    "refused": (20, lambda chance, order_id: good(chance, order_id, card="tok_refused")),
    "bank offline": (10, lambda chance, order_id: good(chance, order_id, card="tok_offline")),
    "flaky": (60, lambda chance, order_id: good(chance, order_id, card="tok_flaky")),
    "negative amount": (4, lambda chance, order_id: good(chance, order_id) | {"amount": "-12.00"}),
    "no such article": (4, lambda chance, order_id: good(chance, order_id) | {"sku": "typewriter"}),
    "words for a number": (3, lambda chance, order_id: good(chance, order_id) | {"quantity": "three"}),
    "nothing ordered": (3, lambda chance, order_id: good(chance, order_id) | {"quantity": 0}),
    "nobody": (2, lambda chance, order_id: good(chance, order_id) | {"customer": None}),
    "no card": (5, lambda chance, order_id: without(good(chance, order_id), "card")),
    "no id": (3, lambda chance, order_id: without(good(chance, order_id), "id")),
}
BROKEN = ('{"id": "', '{"id": "B-2", "customer": "Ana", "sku":', "not an order at all", "[]", "null", "42")


def without(order: dict[str, Any], field: str) -> dict[str, Any]:
    return {name: value for name, value in order.items() if name != field}


def lines(seed: int = 1663) -> list[str]:  # the year in which Brazil's mail began
    chance = random.Random(seed)
    kinds = [make for number, make in KINDS.values() for _ in range(number)]
    kinds += [good] * (TOTAL - len(kinds) - len(BROKEN))
    chance.shuffle(kinds)
    made = [json.dumps(make(chance, f"A{number:04}"), ensure_ascii=False) for number, make in enumerate(kinds, 1)]
    for line in BROKEN:
        made.insert(chance.randrange(len(made)), line)
    return made


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in lines()), encoding="utf-8")
