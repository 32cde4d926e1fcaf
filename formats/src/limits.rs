//! Caps on everything that is read from an image before it is allocated or looped over.

/// Most bytes of root tables (L1, grain directory, BAT) in one [`Ask`](crate::Ask).
pub const ROOT_BYTES: u32 = 32 << 20;

/// Most bytes of one leaf table slice.
pub const LEAF_BYTES: u32 = 64 << 10;

/// Most layers in a chain.
pub const CHAIN_DEPTH: usize = 64;
