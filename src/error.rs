//! The root's error: a sentence for people and what it means for the exit code.

use std::fmt;

/// What an error means to the caller of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Something failed: exit code 1.
    Failed,
    /// The command line does not make sense: exit code 2.
    Usage,
    /// The state differs from what was asked, and nothing was changed: exit code 3.
    Refused,
    /// No server answers on a control socket: exit code 1.
    NoServer,
    /// An image server cannot be reached, or did not answer in time: exit code 1. Another time it may.
    Away,
}

/// An error that reaches people: one sentence that says what and where.
#[derive(Clone, Debug)]
pub struct Error {
    /// What it means.
    pub kind: Kind,
    /// The sentence, without a trailing stop and without secrets.
    pub message: String,
    /// The guest offset of the first byte that cannot be read, where the error is of a read and that is known.
    pub at: Option<u64>,
}

/// A result of the root crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Something failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Error { kind: Kind::Failed, message: message.into(), at: None }
    }

    /// The command line does not make sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Error { kind: Kind::Usage, message: message.into(), at: None }
    }

    /// The state differs from what was asked.
    pub fn refused(message: impl Into<String>) -> Self {
        Error { kind: Kind::Refused, message: message.into(), at: None }
    }

    /// No server answers on a control socket.
    pub fn no_server(message: impl Into<String>) -> Self {
        Error { kind: Kind::NoServer, message: message.into(), at: None }
    }

    /// A local I/O error on `path` while doing `what` ("cannot bind").
    pub fn io(what: &str, path: impl fmt::Display, error: &std::io::Error) -> Self {
        Error::failed(format!("{path}: {what}: {error}"))
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Failed | Kind::NoServer | Kind::Away => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<backends::Error> for Error {
    fn from(error: backends::Error) -> Self {
        let kind = match error.kind {
            backends::Kind::Unreachable => Kind::Away,
            _ => Kind::Failed,
        };
        Error { kind, message: error.message, at: None }
    }
}

/// For what makes blocks of the cache out of others: whether it is worth another try is not lost.
impl From<Error> for backends::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind {
            Kind::Away => backends::Kind::Unreachable,
            _ => backends::Kind::Io,
        };
        backends::Error::new(kind, error.message)
    }
}
