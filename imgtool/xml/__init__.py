"""Floor 1: `<domain>`, `<domainsnapshot>` and diskspecs. Bytes in, bytes out."""
