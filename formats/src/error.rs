//! The one error type of the parsers: `Copy`, so that hostile images cost no allocations.

/// Why an image, or a part of it, cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// No known format's signature is in the file.
    #[error("the file has no known image format's signature")]
    Unrecognised,
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, FormatError>;
