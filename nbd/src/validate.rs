//! Whether a request may be executed: the one place that decides which error wins.
//!
//! In order: an unknown command, a write, unknown flags, a missing context, a range outside the disk, a length beyond
//! the announced maximum. So a client that errs twice always hears the same thing.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::as_conversions
    )
)]

use crate::Errno;
use crate::wire::consts::{CommandFlags, Contexts, Headers, MAX_PAYLOAD};
use crate::wire::{Command, Request};

/// What was negotiated, as far as requests are measured by it.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Form of the replies.
    pub headers: Headers,
    /// Contexts selected for the disk.
    pub contexts: Contexts,
}

/// Whether `request` may be executed under `terms`, else the error it gets. A request that passes lies inside the disk,
/// and a READ is not longer than [`MAX_PAYLOAD`].
pub fn validate(terms: &Terms, request: &Request) -> Result<(), Errno> {
    let allowed = match request.command {
        // DISC has no reply, so that nothing about it can be wrong.
        Command::Disconnect => return Ok(()),
        Command::Unknown(_) => return Err(Errno::Inval),
        Command::Write | Command::Trim | Command::WriteZeroes | Command::Resize => return Err(Errno::Perm),
        Command::Read if terms.headers != Headers::Simple => CommandFlags::FUA | CommandFlags::DF,
        Command::BlockStatus => CommandFlags::FUA | CommandFlags::REQ_ONE,
        Command::Read | Command::Flush | Command::Cache => CommandFlags::FUA,
    };
    if !allowed.contains(request.flags) {
        return Err(Errno::Inval);
    }
    if request.command == Command::Flush {
        // Offset and length of FLUSH are reserved and must be zero.
        return if request.offset == 0 && request.length == 0 { Ok(()) } else { Err(Errno::Inval) };
    }
    if request.command == Command::BlockStatus && (terms.contexts.is_empty() || request.length == 0) {
        return Err(Errno::Inval);
    }
    let end = request.offset.checked_add(request.length);
    if end.is_none_or(|end| end > terms.size) {
        return Err(Errno::Inval);
    }
    if request.command == Command::Read && request.length > u64::from(MAX_PAYLOAD) {
        return Err(Errno::Inval);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
