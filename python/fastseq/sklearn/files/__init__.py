"""The scikit-learn estimators in files: `save` and `load`."""
