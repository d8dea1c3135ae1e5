"""Lists the packages of a wheel; pyproject.toml, which cannot add a folder to those that it finds, has all the rest."""

from setuptools import find_namespace_packages, setup

# `configs/` stands beside the package in a checkout and inside it in a wheel (see `package-dir` in pyproject.toml).
configs = ["sft_lightning.configs", *(f"sft_lightning.configs.{name}" for name in find_namespace_packages("configs"))]
setup(packages=[*find_namespace_packages(include=["sft_lightning*"]), *configs])
