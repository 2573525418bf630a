"""Who you are and who may enter: keys, strict CBOR, signed envelopes, certificates, invites."""
