//! The filter against the HTTP/2 server it stands before, with frames written by hand and by proptest.
