"""The commands of `ssamba`, an area a file: `add` says what arguments they take, and a function is each command.

They parse, call and print; none imports torch before it is called, so that --help and mistakes are answered at once.
Only `ssamba.cli` imports them.
"""
