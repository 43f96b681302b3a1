"""Configuration, command line, provisioning and kits: the outermost layer, which reads files and prints.

Nothing in `vae`, `privacy`, `client` or `server` imports it, except the two Flower entry points.
"""
