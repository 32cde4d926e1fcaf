//! Thinorigin.
