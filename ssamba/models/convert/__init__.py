"""Models in the formats of the originals' authors: `state_dicts` translates tensors by the tables of `families`, and
`transfer` reads and writes files. Imported by the command line alone: what builds or trains models does without."""
