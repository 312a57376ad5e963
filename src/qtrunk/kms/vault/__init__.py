"""The vault: where the key-encryption key (KEK) of a node's store comes from, and how it is kept and changed.

    vaultfile    the file: who may unseal, and the KEK wrapped so that only they can
    methods      passphrase, shares, token (PKCS#11), credential (systemd), file: each makes a wrapping key
    opened       a vault that is unsealed; making one, adding and removing unsealers
    unsealing    from sealed to opened: secrets that come one at a time
    rotation     a new KEK for everything that the old one wrapped, safe at every step
    backup       the records of a store without its keys, and beginning anew from them

While a node is sealed the KEK is nowhere: not on its disk in clear, not in its memory. docs/vault.md has the ideas.
"""
