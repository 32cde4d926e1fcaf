//! The crate's one error: a small kind to match on, a sentence for people, and the cause.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, as far as a caller needs to tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The world is not as the request needs it, and nothing was changed (exit code 3).
    Refused,
    /// The SR is there and is not attached, or only half (exit code 3).
    NotAttached,
    /// No SR, VDI or device has the name that was given (exit code 1).
    NotFound,
    /// The caller asked to stop, and what was half made is undone (exit code 1).
    Cancelled,
    /// An operation was tried and failed (exit code 1).
    Failed,
}

/// An error of the SR controller.
///
/// `Display` is one sentence without a trailing stop; the cause is in `source()` and not repeated in it.
#[derive(Debug)]
pub struct Error {
    /// What callers match on.
    pub kind: ErrorKind,
    /// What happened, to what, where.
    pub message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The world is not as the request needs it.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// The SR is not attached.
    pub fn not_attached(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotAttached, message)
    }

    /// Nothing has that name.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// An operation failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    /// An error of `kind` without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The same error with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The sentence and its causes as one.
    pub fn with_causes(&self) -> String {
        let mut message = self.message.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            message = format!("{message}: {error}");
            cause = error.source();
        }
        message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}
