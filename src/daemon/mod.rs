//! A server that others control: its exports, the kernel devices it serves, and the control socket.
//!
//! `thinorigin attach` and `smctl` do not serve anything themselves. They ask the running server over a unix socket
//! ([`Client`]), and start one where none runs (`spawn`). What is attached is written down beside the socket, so
//! that a server that takes over after a restart finds the devices that are waiting for it.

pub(crate) mod admin;
mod api;
mod attachments;
mod client;
mod content;
mod exports;
pub(crate) mod handover;
mod metrics;
pub(crate) mod record;
pub(crate) mod spawn;
pub(crate) mod spec;
mod takeover;
pub(crate) mod watchdog;

pub use api::{AttachRequest, Attached, Content, Exported};
pub(crate) use attachments::{Attachments, changed};
pub use client::Client;
pub(crate) use exports::{Common, Registry};
pub use spec::ExportSpec;

use crate::error::{Error, Result};
use std::path::PathBuf;

/// Where the control socket is unless said otherwise.
pub const ADMIN: &str = "unix:/run/thinorigin/admin.sock";

/// The path in `unix:PATH`.
pub(crate) fn admin_path(address: &str) -> Result<PathBuf> {
    match address.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(PathBuf::from(path)),
        _ => Err(Error::usage(format!("{address:?} is not a control socket: use unix:/PATH"))),
    }
}
