"""What models are worth: metrics, intervals, baselines, probes, reports, speed. Imported by whatever trains, compares
or scores models; imports models and data, and knows neither recipes nor how a model was trained."""
