//! Overlay uppers to OCI layer tars.
