"""Values of a shape and a size, drawn with a seed: what real jobs carry, and what is hard to carry."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import Any

Value = Any
"""Whatever JSON can say, or bytes."""

# A few words of each script; none needs an escape in JSON.
SCRIPTS: tuple[tuple[str, ...], ...] = (
    ("order", "shipped", "naïve", "Straße", "garçon", "invoice", "the", "and", "of", "queue"),
    ("παραγγελία", "και", "πληρωμή", "σήμερα", "λόγος"),
    ("заказ", "и", "оплачен", "сегодня", "очередь"),
    ("طلب", "مدفوع", "اليوم", "رسالة", "و"),
    ("आदेश", "भुगतान", "आज", "संदेश", "और"),
    ("注文", "支払い", "今日", "订单", "消息", "하나"),
    ("🚀", "📦", "🙂", "🐍", "✅"),
)
PLAIN = ("order", "paid", "late", "gift", "blue", "small", "fragile", "call", "first", "north", "return", "spare")
CITIES = ("Oslo", "Zürich", "Lyon", "Łódź", "Porto", "Malmö", "Graz", "Cork", "Turku", "Győr")

LEVELS = 24
"""Of a tree's branches. Each level is a dict and a list: 48 deep leaves a pure Python decoder such as PyYAML's, which
needs some frames for each, well within the 1000 that Python allows, a worker's own among them."""
COLOURS = 12
LONGEST_RUN = 24


def make(shape: str, size_bytes: int, seed: int = 0) -> Value:
    """A value of this shape: the same for the same arguments, in every process and every Python.

    Its size, as compact JSON in UTF-8 or of bytes their length, is within 10 % of what is asked, from 100 bytes on.
    10 MB take some seconds. Raises ValueError for a shape that is none of SHAPES and for a size below 1.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    if size_bytes < 1:
        raise ValueError(f"a payload has 1 byte or more, not {size_bytes}")
    return _sorted(SHAPES[shape](size_bytes, seed))


def _sorted(value: Any) -> Any:
    """The value with the keys of each dict in order: YAML sorts them, and what arrives shall also look the same."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) and value and not _is_flat(value) else value


def _is_flat(values: list[Any]) -> bool:
    return not isinstance(values[0], dict | list)


def size(value: Value) -> int:
    """The size that `make` means."""
    return len(value) if isinstance(value, bytes) else len(_compact(value))


def _compact(value: Value) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def records(size_bytes: int, seed: int) -> list[dict[str, Any]]:
    """Orders as an application stores them: short texts, numbers, truth values and nothing, three levels deep."""
    random = Random(seed)
    orders: list[dict[str, Any]] = []
    left = size_bytes - 2  # the brackets
    while True:
        order = _order(random)
        if len(_compact(order)) + 1 > left:
            break
        orders.append(order)
        left -= len(_compact(order)) + 1  # the comma
    last: dict[str, Any] = {"id": random.randrange(10**7, 10**8), "paid": True, "note": ""}
    if left >= len(_compact(last)) + 1 or not orders:
        orders.append(last)
        left -= len(_compact(last)) + 1
    orders[-1]["note"] += _words(random, left + 1)  # the last has no comma
    return orders


def _order(random: Random) -> dict[str, Any]:
    return {
        "id": random.randrange(10**7, 10**8),
        "customer": {
            "name": f"{random.choice(PLAIN).title()} {random.choice(PLAIN).title()}",
            "city": random.choice(CITIES),
            "since": random.randrange(1990, 2025),
        },
        "lines": [
            {
                "sku": f"{random.choice('ABCDEF')}-{random.randrange(1000, 10000)}",
                "quantity": random.randrange(1, 20),
                "price": random.randrange(50, 20000) / 100,
            }
            for _ in range(random.randrange(1, 5))
        ],
        "paid": random.random() < 0.8,
        "voucher": random.choice(PLAIN) if random.random() < 0.3 else None,
        "note": _words(random, random.randrange(10, 60)),
    }


def _words(random: Random, size_bytes: int) -> str:
    """Plain words of exactly this length; nothing for none."""
    if size_bytes < 1:
        return ""
    return " ".join(random.choices(PLAIN, k=size_bytes // 3 + 1))[:size_bytes]


def text(size_bytes: int, seed: int) -> str:
    """Words of seven kinds of writing, in turn: up to four bytes a character."""
    random = Random(seed)

    def words() -> Iterator[str]:
        left = size_bytes
        while left > 0:
            for script in SCRIPTS:
                word = random.choice(script)
                left -= len(word.encode()) + 1
                yield word

    # Cut between characters: what is left of one that did not fit is dropped.
    return " ".join(words()).encode()[: max(size_bytes - 2, 0)].decode(errors="ignore")


def numbers(size_bytes: int, seed: int) -> list[int]:
    """Many small whole numbers."""
    random = Random(seed)

    def draw() -> int:
        return int(random.random() * 2000) - 500

    return list(_up_to(size_bytes - 1, draw))


def floats(size_bytes: int, seed: int) -> list[float]:
    """Numbers with all the digits that a float has."""
    random = Random(seed)

    def draw() -> float:
        return (random.random() - 0.5) * 2000

    drawn = list(_up_to(size_bytes - 1, draw))
    # One more, of just the digits that there is room for
    room = size_bytes - 1 - sum(len(repr(number)) + 1 for number in drawn)
    if room > 4:
        drawn.append(round(1 + random.random(), room - 3))
    return drawn


def _up_to(size_bytes: int, draw: Callable[[], Any]) -> Iterator[Any]:
    """Numbers that, with a comma each, take no more than these bytes."""
    left = size_bytes
    while True:
        number = draw()
        left -= len(repr(number)) + 1
        if left < 0:
            return
        yield number


def raw(size_bytes: int, seed: int) -> bytes:
    """Bytes like a picture's before it is packed: runs of a few colours. Never valid UTF-8."""
    random = Random(seed)
    colours = [bytes([value]) for value in random.choices(range(256), k=COLOURS)]
    drawn, runs = 1, [b"\xff"]
    while drawn < size_bytes:
        run = random.choice(colours) * (1 + int(random.random() * LONGEST_RUN))
        runs.append(run)
        drawn += len(run)
    return b"".join(runs)[:size_bytes]


def noise(size_bytes: int, seed: int) -> bytes:
    """Bytes that no compression makes fewer, such as pictures that are packed already."""
    return Random(seed).randbytes(size_bytes)


def tree(size_bytes: int, seed: int) -> dict[str, Any]:
    """Branches of up to 24 levels, each a dict that holds a list."""
    random = Random(seed)
    root: dict[str, Any] = {"name": "root", "note": "", "children": []}
    left = size_bytes - len(_compact(root))
    while (branch := _branch(random, left - 1)) is not None:
        root["children"].append(branch)
        left -= len(_compact(branch)) + 1
    root["note"] = _words(random, left)
    return root


def _branch(random: Random, room: int) -> dict[str, Any] | None:
    """A branch of as many levels as there is room for, from its tip to its foot; None without room for a leaf."""
    node, levels = _leaf(random), 0
    left = room - len(_compact(node))
    if left < 0:
        return None
    while levels < LEVELS - 1:
        sibling: dict[str, Any] = {"name": random.choice(PLAIN), "children": [_leaf(random)]}
        left -= len(_compact(sibling)) + 1
        if left < 0:
            break
        sibling["children"].append(node)
        node, levels = sibling, levels + 1
    return node


def _leaf(random: Random) -> dict[str, Any]:
    return {"name": random.choice(PLAIN), "size": random.randrange(1000)}


SHAPES: Mapping[str, Callable[[int, int], Value]] = {
    "records": records,
    "text": text,
    "numbers": numbers,
    "floats": floats,
    "bytes": raw,
    "noise": noise,
    "tree": tree,
}
