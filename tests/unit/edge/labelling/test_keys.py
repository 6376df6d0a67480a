"""Which key gives which label."""

from __future__ import annotations

from apiary_edge.labelling.keys import keys, likened


def test_digits_answer_to_their_own_keys_and_others_to_their_numbers() -> None:
    assert keys({"7": 1, "0": 2, "cat": 3, "dog": 7, "owl": 12}) == {"7": "7", "0": "0", "cat": "3"}
    assert keys({str(d): i for i, d in enumerate(range(10), 1)}) == {str(d): str(d) for d in range(10)}
    assert keys({"²": 1}) == {"²": "1"}, "a digit, but no key"


def test_labels_alike() -> None:
    assert likened("Hard  Hat", ["vest", "hard hat"]) == "hard hat"
    assert likened("hardhat", ["hard hat"]) == "hard hat"
    assert likened("\uff28ardhat", ["Hardhat"]) == "Hardhat"
    assert likened("vest", ["vest", "Vest"]) is None
    assert likened("boot", ["vest"]) is None
