"""`ssamba doctor`: what works on this machine, found by trying it, and what to do about what does not.

A file of checks an area, each a generator of findings; `report` runs them and tells. Nothing here imports torch before
a check runs: of an installation that does not even import, the doctor still tells the rest. The command line alone
imports it.
"""
