//! OCI layer tars to overlay upper format.
