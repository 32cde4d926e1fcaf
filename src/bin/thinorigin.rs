//! thinorigin.
fn main() {}
