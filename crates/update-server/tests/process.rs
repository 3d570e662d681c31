//! The real binary, over its whole life.
