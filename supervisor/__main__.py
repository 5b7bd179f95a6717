"""`python -m supervisor` is `ostler`; the installed commands begin here as well.

Root's imports are watched before anything else is imported: see `imports.guard`.
"""

from supervisor.osapi.imports import guard


def main() -> None:
    """Entry point of `ostler`."""
    guard()
    from supervisor.cli.main import main as run

    run()


def ctl() -> None:
    """Entry point of `ctl`."""
    guard()
    from supervisor.cli.ctl import main as run

    run()


if __name__ == "__main__":
    main()
