"""`python -m supervisor` is `ostler`."""

from supervisor.cli.main import main

main()
