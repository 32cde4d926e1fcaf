//! The NBD protocol: a sans-I/O codec and state machines, a read-only server, and the Linux kernel client.
//!
//! A [`Server`] serves [`Exports`]; what an [`Export`] answers a read with is [`Segments`], which say where the bytes are.
//! [`handshake`], [`session`], [`wire`] and [`validate`] are the protocol itself: they do no I/O and read no clock.
//! Names and numbers are those of the protocol document (`doc/proto.md` of NetworkBlockDevice/nbd).

mod client;
mod connection;
mod door;
mod export;
pub mod handshake;
pub mod kernel;
mod link;
mod padded;
mod server;
pub mod session;
mod thread;
mod tls;
pub mod validate;
pub mod wire;

pub use client::{Client, Fingerprint};
pub use connection::{Aside, Encrypted, Stream};
pub use export::{
    Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, FileBytes, Segment, Segments,
};
pub use link::{Link, serve_transmission, serve_until_quiet};
pub use padded::Padded;
pub use server::{Limits, Listener, Server};
pub use tls::{Clients as TlsClients, Tls, TlsError};
