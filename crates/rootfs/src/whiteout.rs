//! Whiteouts and opaque directories.
