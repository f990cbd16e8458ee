"""`python -m bloomery.flows.cli`."""

from bloomery.flows.cli.main import main

main()
