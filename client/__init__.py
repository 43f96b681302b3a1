"""What runs at a hospital: the site, the thin ClientApp, and the contract between them and the server."""
