"""Recipes and data_prep's scripts lie beside the package in a checkout, and inside of it in a wheel."""

from setuptools import find_packages, setup

BESIDE = {"ssamba.recipes": "recipes", "ssamba.data_prep": "data_prep"}

setup(packages=[*find_packages(include=["ssamba", "ssamba.*"]), *BESIDE], package_dir=BESIDE)
