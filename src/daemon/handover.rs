//! Sockets of kernel devices that one server leaves to the next, so that the kernel notices nothing of a restart.
//!
//! The service manager keeps them meanwhile (systemd's file descriptor store). A socket is a stream of bytes, and only
//! a server that drained knows that it stopped between two replies. So it says of which sockets that is true, in a note
//! beside the records, before it hands them over; and the next one removes the note before it serves anything. Sockets
//! that come without a note are those of a server that died, perhaps in the middle of a reply: they are shut down, so that
//! the kernel sees their end, whoever else holds them, and takes new ones.
//!
//! A socket is known by its cookie, which the kernel gives to no other until the machine starts anew. Before version 233
//! systemd passes no names on and forgets nothing it was given until the service ends; this works there as well.

use super::record;
use crate::error::{Error, Result};
use nbd::Link;
use rustix::net::{Shutdown, shutdown, sockopt::socket_cookie};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// The note's name in the directory of records. Its extension is not theirs.
const NOTE: &str = "handed-over";

/// What is known of a socket that can be gone on with.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    /// The number of the kernel device.
    index: u32,
    /// Which socket it is.
    cookie: u64,
    /// What was read of a request that has not come whole.
    received: Vec<u8>,
}

/// What the service manager calls the sockets of a device.
fn name(index: u32) -> String {
    format!("nbd{index}")
}

/// Leaves drained `links`, each with the number of its device, to the next server, by way of a service manager that keeps
/// them. How many that are: none where there is no such manager. What is not left is closed.
pub(super) fn leave(directory: &Path, links: &[(u32, Link)]) -> Result<usize> {
    if links.is_empty() || std::env::var_os("NOTIFY_SOCKET").is_none() {
        return Ok(0);
    }
    let failed = |error: std::io::Error| Error::failed(format!("sockets cannot be left: {error}"));
    let noted = |(index, link): &(u32, Link)| {
        let cookie = socket_cookie(link)?;
        Ok(Noted { index: *index, cookie, received: link.received().to_vec() })
    };
    let note = links.iter().map(noted).collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    record::write_whole(&directory.join(NOTE), &note)?;
    let devices: BTreeSet<u32> = links.iter().map(|(index, _)| *index).collect();
    for device in devices {
        let of_it = links.iter().filter(|(index, _)| *index == device);
        let sockets: Vec<BorrowedFd<'_>> = of_it.map(|(_, link)| link.as_fd()).collect();
        let message = [NotifyState::FdStore, NotifyState::FdName(&name(device))];
        sd_notify::notify_with_fds(&message, &sockets).map_err(failed)?;
    }
    Ok(links.len())
}

/// The sockets of `passed` that a server left between two replies, by device. The others are shut down. From then on
/// none of them can be gone on with by yet another server, unless this one leaves it again.
pub(super) fn take(directory: &Path, passed: Vec<OwnedFd>) -> HashMap<u32, Vec<Link>> {
    let note = take_note(&directory.join(NOTE));
    let mut links: HashMap<u32, Vec<Link>> = HashMap::new();
    for socket in passed {
        let cookie = socket_cookie(&socket).ok();
        let noted = note.iter().find(|noted| Some(noted.cookie) == cookie);
        match noted.map(|noted| (noted, resume(&socket, noted))) {
            Some((noted, Ok(link))) => links.entry(noted.index).or_default().push(link),
            _ => refuse(&socket),
        }
    }
    for device in links.keys() {
        // What the manager keeps longer is shut down by the next server: it will not be in its note.
        let _ = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name(*device))]);
    }
    links
}

/// Ends a socket that nobody can go on with.
pub(crate) fn refuse(socket: &OwnedFd) {
    tracing::info!("a socket that its server did not leave in order is closed");
    // One whose other end is gone is as good as shut down.
    let _ = shutdown(socket, Shutdown::Both);
}

fn resume(socket: &OwnedFd, noted: &Noted) -> std::io::Result<Link> {
    let stream = UnixStream::from(socket.try_clone()?);
    stream.set_nonblocking(true)?;
    Ok(Link::resume(tokio::net::UnixStream::from_std(stream)?, &noted.received))
}

/// Reads the note and removes it; empty where there is none, or it would be there still.
fn take_note(path: &Path) -> Vec<Noted> {
    let Ok(text) = std::fs::read(path) else { return Vec::new() };
    let note = std::fs::remove_file(path).map_err(|error| error.to_string());
    let note = note.and_then(|()| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    note.unwrap_or_else(|error| {
        tracing::warn!("{}: sockets that were left are not used: {error}", path.display());
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// A socket to leave, and its other end.
    fn pair() -> (OwnedFd, UnixStream) {
        let (own, other) = UnixStream::pair().unwrap();
        (own.into(), other)
    }

    fn note(directory: &Path, index: u32, socket: &OwnedFd) {
        let noted = Noted { index, cookie: socket_cookie(socket).unwrap(), received: vec![1, 2] };
        record::write_whole(&directory.join(NOTE), &[noted]).unwrap();
    }

    #[tokio::test]
    async fn what_was_left_in_order_is_gone_on_with_once() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, mut other) = pair();
        let (stray, mut far) = pair();
        let kept_elsewhere = [socket.try_clone().unwrap(), stray.try_clone().unwrap()];
        note(directory.path(), 3, &socket);
        let mut links = take(directory.path(), vec![stray, socket]);
        let [link] = &links.remove(&3).unwrap()[..] else { panic!("one socket was left") };
        assert_eq!((link.received(), link.is_open(), links.len()), (&[1, 2][..], true, 0));
        other.write_all(b"x").unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 0, "nobody said of this one that it can be used");

        // The server dies, and the manager passes what it still has.
        let [socket, _] = kept_elsewhere;
        assert!(take(directory.path(), vec![socket]).is_empty());
        assert_eq!(other.read(&mut [0]).unwrap(), 0, "the kernel is to see that it has ended");
    }

    #[tokio::test]
    async fn a_note_that_is_damaged_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (socket, mut other) = pair();
        std::fs::write(directory.path().join(NOTE), "[{\"index\":0").unwrap();
        assert!(take(directory.path(), vec![socket]).is_empty());
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        assert!(!directory.path().join(NOTE).exists());
    }
}
