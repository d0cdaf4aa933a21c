//! The SPIFFE standards as types: identifiers, SVIDs, bundles, keys. No I/O.
