//! Whole trees as tars.
