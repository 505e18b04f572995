"""Runs side by side: which may be, what tells them apart, what they score and cost, and what of it is a difference.
Imported by protocols, the demo and the command line; it reads what runs wrote, and trains nothing."""
