"""Variational autoencoders for medical images and tables: data, models, tasks, metrics.

Knows nothing of federation or of privacy; `client` joins it with `privacy`.
"""
