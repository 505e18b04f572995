"""The training loop: the two LightningModules, checkpoints, signals, devices, loggers, run folders. Imported by build,
train, protocols, the doctor and the command line; imports what is below, and no recipe."""
