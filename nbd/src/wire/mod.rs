//! The protocol's bytes: numbers, requests, replies. Nothing here does I/O.

pub mod consts;
mod cursor;
mod reply;
mod request;

pub(crate) use cursor::Cursor;
pub use reply::{Sink, encode_done, encode_error, encode_read, encode_status};
pub use request::{Command, Cookie, Malformed, Request};

#[cfg(test)]
mod tests;
