"""Config to objects: the only place that reads whole recipes, and makes models, data and trainers of them. Imported by
train, protocols and the command line; imports all that it makes."""
