"""``python -m flowstate.command`` is ``flowstate``."""

from flowstate.command.main import main

main()
