"""How a model is scored: probes, verification, fine-tuning beside its baseline, folds and seeds, sweeps. Imported by
train and the command line alone; imports whatever it takes to make and score models."""
