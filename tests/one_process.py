"""Commands of ssamba one after another in a process of their own, which imports torch once."""

COMMANDS = """
import json, sys
from ssamba.cli import main

for words in json.loads(sys.argv[1]):
    print("$", *words, flush=True)
    if status := main(words):
        sys.exit(status)
"""
"""Given a list of lists of words in JSON; what each command prints comes behind a line with it."""
