//! smctl.
fn main() {}
