"""Tasks: how a trained model is judged.

A task knows of a model only its `Reconstruct` callable, so a network, a baseline and a personalised model of
one site go through the very same pipeline. Everything here is evaluation: it reads labels, runs after
training, and its results describe test patients; in a real federation they stay at the site unless its policy
lets them out.
"""
