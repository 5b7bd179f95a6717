"""`python -m ostler` is `ostler`; the installed commands begin here as well.

Root's imports are watched before anything else is imported: see `imports.guard`.
"""

from ostler.osapi.imports import guard


def main() -> None:
    """Entry point of `ostler`."""
    guard()
    from ostler.cli.main import main as run

    run()


def ctl() -> None:
    """Entry point of `ctl`."""
    guard()
    from ostler.cli.ctl import main as run

    run()


if __name__ == "__main__":
    main()
