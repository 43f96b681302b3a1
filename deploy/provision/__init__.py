"""`python -m deploy provision`: the consortium's certificates, and the keys that each hospital makes for itself.

    centre    authority FOLDER --name NAME       the root, once
    centre    server FOLDER HOST...              certificate and key of the server
    hospital  request --site NAME --out FOLDER   the site's own keys, and one file to send
    centre    sign FOLDER REQUEST --out FILE     the site's certificate
    centre    renew, revoke, list                its further life

Who does what, and what must be kept secret: deploy/docs/provisioning.md. No private key of a hospital ever leaves it.
What it does not do: distribute files, or check revocation; the proxy in front of the server does, with `crl.pem`.
"""
