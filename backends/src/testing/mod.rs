//! Parts for tests: an HTTP [`Origin`] that counts and lies.

mod origin;

pub use origin::{Lie, Origin};
