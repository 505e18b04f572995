"""A trained model on recordings of any length, from Python and for `ssamba predict` and `ssamba embed`."""

from ssamba.inference.windows import Window, predict_file

__all__ = ["Window", "predict_file"]
