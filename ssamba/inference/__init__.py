"""A trained model on recordings of any length, from Python and for `ssamba predict` and `ssamba embed`. Imported by
users, protocols and the command line; imports nothing that knows how the model was trained."""

from ssamba.inference.windows import Window, predict_file

__all__ = ["Window", "predict_file"]
