"""Which key gives which label."""

from __future__ import annotations

from apiary_edge.labelling.keys import keys, likened, typed


def test_digits_answer_to_their_own_keys_and_others_to_their_numbers() -> None:
    assert keys({"7": 1, "0": 2, "cat": 3, "dog": 7, "owl": 12}) == {"7": "7", "0": "0", "cat": "3"}
    assert keys({str(d): i for i, d in enumerate(range(10), 1)}) == {str(d): str(d) for d in range(10)}
    assert keys({"²": 1}) == {"²": "1"}, "a digit, but no key"


def test_no_key_changes_its_meaning_as_labels_come() -> None:
    coming = ["cat", "2", "dog", "1", "5", "owl", "fox", "3", *"046789", *(f"kind {i}" for i in range(12))]
    numbers: dict[str, int] = {}
    for n, label in enumerate(coming, 1):
        keys_before, typed_before = keys(numbers), typed(numbers)
        numbers[label] = n
        assert keys_before.items() <= keys(numbers).items()
        assert typed_before.items() <= typed(numbers).items()
    assert keys(numbers) == {"cat": "1", "2": "2", "dog": "3", "5": "5", "owl": "6", "fox": "7", "0": "0"} | {
        "4": "4", "8": "8", "9": "9"
    }  # fmt: skip
    assert typed(numbers)["kind 11"] == "26" and "1" not in keys(numbers) and typed(numbers)["1"] == "=1"
    assert len(set(typed(numbers).values())) == len(typed(numbers))


def test_labels_alike() -> None:
    assert likened("Hard  Hat", ["vest", "hard hat"]) == "hard hat"
    assert likened("hardhat", ["hard hat"]) == "hard hat"
    assert likened("\uff28ardhat", ["Hardhat"]) == "Hardhat"
    assert likened("vest", ["vest", "Vest"]) is None
    assert likened("boot", ["vest"]) is None
