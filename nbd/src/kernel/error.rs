//! What can go wrong with kernel devices.

use super::netlink::Command;
use rustix::io::Errno;
use std::io;

/// Why a kernel device could not be made, changed or let go.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
}

/// What callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The kernel has no network block devices.
    NoModule,
    /// It takes root.
    Permission,
    /// Somebody uses the device, or the number is taken.
    Busy,
    /// There is no such device, or it is not connected.
    NoDevice,
    /// Anything else.
    Other,
}

impl Error {
    /// What kind of error it is.
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Whether it may go away by itself when somebody lets go of the device.
    pub const fn is_busy(&self) -> bool {
        matches!(self.kind, ErrorKind::Busy)
    }

    pub(super) fn new(kind: ErrorKind, context: String) -> Self {
        Self { kind, context }
    }

    /// An error of a system call.
    pub(super) fn system(context: &str, source: &io::Error) -> Self {
        let kind = match Errno::from_io_error(source) {
            Some(Errno::PERM | Errno::ACCESS) => ErrorKind::Permission,
            Some(Errno::BUSY) => ErrorKind::Busy,
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => ErrorKind::NoDevice,
            _ => ErrorKind::Other,
        };
        Self { kind, context: format!("{context}: {source}") }
    }

    /// The family `nbd` could not be looked up.
    pub(super) fn family(source: &io::Error) -> Self {
        match Errno::from_io_error(source) {
            Some(Errno::NOENT) => Self {
                kind: ErrorKind::NoModule,
                context: "this kernel has no network block devices: load the module with `modprobe nbd`"
                    .into(),
            },
            _ => Self::system("cannot find the netlink family nbd", source),
        }
    }

    /// The kernel refused a command.
    pub(super) fn command(command: Command, source: &io::Error) -> Self {
        if Errno::from_io_error(source) == Some(Errno::PERM) {
            let context = "network block devices take root (CAP_SYS_ADMIN)".into();
            return Self { kind: ErrorKind::Permission, context };
        }
        let context = match command {
            Command::Connect => "the kernel does not connect a network block device",
            Command::Disconnect => "the kernel does not disconnect the network block device",
            Command::Reconfigure => "the kernel does not give the network block device new sockets",
            Command::Status => "the kernel does not tell about its network block devices",
        };
        Self::system(context, source)
    }

    /// The same about the device `index`.
    pub(super) fn of(mut self, index: u32) -> Self {
        self.context = format!("/dev/nbd{index}: {}", self.context);
        self
    }
}
