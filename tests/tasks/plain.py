"""A function that is no task where it stands."""


def double(number: int) -> int:
    return number * 2
