"""At the hospital: its own keys in a new folder, and the one file that leaves it.

    FOLDER/client.key          TLS key, for connections to the centre        secret, mode 0600
    FOLDER/supernode           SuperNode's key, for Flower                    secret, mode 0600
    FOLDER/supernode.pub       its public part
    FOLDER/NAME.request.json   the request: what is sent

Guarantees (tests/unit/provision/test_keys.py): both secrets are readable by their owner alone; the request holds public
keys alone; the folder appears whole or not at all.
"""

from __future__ import annotations

from pathlib import Path

from deploy.provision.files import new_folder, require_free
from deploy.provision.keys import (
    create_node_key,
    create_tls_key,
    private_openssh,
    private_pem,
    public_openssh,
)
from deploy.provision.request import fingerprint, make_request, require_site
from privacy.signing import load_key
from vae.data.durable import READABLE, write_atomically

TLS_KEY_NAME, NODE_KEY_NAME, NODE_PUBLIC_NAME = "client.key", "supernode", "supernode.pub"


def make_keys(site: str, folder: Path, ledger_key: Path | None) -> tuple[Path, str]:
    """Make a site's keys and its request; return the request's file and its fingerprint.

    Args:
        site: Name in the federation, as in `site.yaml`.
        folder: Where; nothing may lie there.
        ledger_key: The site's key of its ledger, of which the public part goes into the request.

    Raises:
        InputError: the name cannot be used, or something lies there already.
        SigningError: the ledger's key cannot be read, or others can read it.
    """
    require_site(site)
    require_free(folder)
    public = None if ledger_key is None else load_key(ledger_key).public
    tls_key, node_key = create_tls_key(), create_node_key()
    request = make_request(site, tls_key=tls_key, node_key=node_key, ledger_key=public)
    name = f"{site}.request.json"
    with new_folder(folder) as partial:
        write_atomically(partial / TLS_KEY_NAME, private_pem(tls_key))
        write_atomically(partial / NODE_KEY_NAME, private_openssh(node_key))
        line = f"{public_openssh(node_key.public_key())}\n".encode()
        write_atomically(partial / NODE_PUBLIC_NAME, line, mode=READABLE)
        write_atomically(partial / name, request, mode=READABLE)
    return folder / name, fingerprint(request)
