"""What the program says about a bug of its own."""

from preflight import run


def test_bug_is_told_without_values() -> None:
    """An exception's text may hold a row or a secret; its kind and place are enough."""
    try:
        int("hunter2")
    except ValueError as error:
        told = run.internal(error)

    assert "internal.error" == told["code"]
    assert "ValueError at test_entrypoint.py:" in str(told["message"])
    assert "hunter2" not in str(told)
