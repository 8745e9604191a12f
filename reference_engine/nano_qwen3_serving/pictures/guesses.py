"""A reader's guess beside what was measured."""

from __future__ import annotations


def beside(what: str, guess: float | None, measured: float, unit: str = "") -> None:
    """Prints what was measured, and in the same line the guess, if there is one, and how far off it was.

    Args:
        what: the thing that was guessed.
        guess: the reader's, None for none.
        measured: on this machine, in this run.
        unit: of both.
    """
    unit = f" {unit}" if unit else ""
    shown = f"{_number(measured)}{unit}"
    if guess is None:
        print(f"{what}: {shown}")
    elif guess == measured:
        print(f"{what}: {shown}, as you guessed")
    else:
        print(f"{what}: {shown}; your guess was {_number(guess)}{unit}{_apart(guess, measured)}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _apart(guess: float, measured: float) -> str:
    if guess <= 0 or measured <= 0:
        return ""
    larger, word = (guess / measured, "high") if guess > measured else (measured / guess, "low")
    return f", {larger:.2g} times too {word}"
