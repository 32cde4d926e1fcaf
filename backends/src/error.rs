//! What can go wrong with a source.

/// What callers match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// No such object.
    NotFound,
    /// The server refused: credentials or permissions.
    Denied,
    /// The server cannot be reached, or did not answer in time.
    Unreachable,
    /// The object changed since it was opened. Final.
    Changed,
    /// The server does not do what is needed, such as range requests.
    Unsupported,
    /// The server's answer does not fit the request.
    BadAnswer,
    /// A range outside the object.
    Range,
    /// The location itself is wrong.
    Location,
    /// A local I/O error.
    Io,
}

/// An error: kind, a sentence without secrets that names the location, and the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What callers match on.
    pub kind: Kind,
    /// For people; one sentence, the cause included.
    pub message: String,
}

impl Error {
    /// An error of `kind` with `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }
}
