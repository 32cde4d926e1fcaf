//! A client that negotiates nothing, at the other end of a socket pair: the Linux kernel.

use crate::connection::{Connection, End, Settled, Shared, Stream};
use crate::session::Session;
use crate::validate::Terms;
use crate::wire::consts::{Contexts, Headers};
use crate::{Export, Limits, Padded};
use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// The server's end of a connection that has been in the transmission phase from its first byte, with simple replies. It
/// can be served by one process and then by another: its bytes are a stream, so that the other has to begin where the first
/// stopped.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    /// The beginning of a request that has not come whole.
    received: BytesMut,
}

impl Link {
    /// A connection of which nothing has been read.
    pub fn new(stream: UnixStream) -> Self {
        Self::resume(stream, &[])
    }

    /// A connection that [`serve_transmission`] gave back, here or in another process, and what was
    /// [`received`](Self::received) of it.
    pub fn resume(stream: UnixStream, received: &[u8]) -> Self {
        Self { stream, received: BytesMut::from(received) }
    }

    /// What has been read of a request that has not come whole: less than one header.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Whether the other end is there still.
    pub fn is_open(&self) -> bool {
        let mut socket = [PollFd::new(&self.stream, PollFlags::empty())];
        let gone = PollFlags::HUP | PollFlags::ERR;
        // A poll that fails says nothing; whoever serves the link will see.
        let polled = poll(&mut socket, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled.is_err() || !socket[0].revents().intersects(gone)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Serves a client that negotiates nothing and uses simple replies. It sees the export [`Padded`] to whole sectors, and has
/// [`Limits`] of its own. Ends when the client disconnects, or when `shutdown` is cancelled and every request that came is
/// answered. Then the link is given back, for whoever serves it next; to drop it is to close it. After an error the
/// stream may be in the middle of a reply, and is closed.
pub async fn serve_transmission<E: Export>(
    link: Link,
    export: Arc<E>,
    shutdown: CancellationToken,
) -> io::Result<Option<Link>> {
    Ok(match transmission(link, export).run(shutdown).await? {
        End::Drained(Stream::Unix(stream), received) => Some(Link { stream, received }),
        _ => None,
    })
}

/// Serves a link that [`serve_transmission`] gave back and that nobody goes on with, until there is an instant in which
/// nothing is under way and nothing more has come, or for `limit`; then answers what has come and closes it. The kernel does
/// not send again what was under way on a socket that is closed, before its timer for requests fires.
pub async fn serve_until_quiet<E: Export>(link: Link, export: Arc<E>, limit: Duration) -> io::Result<()> {
    transmission(link, export).run_until_quiet(limit).await.map(drop)
}

fn transmission<E: Export>(link: Link, export: Arc<E>) -> Connection<Padded<E>> {
    let export = Arc::new(Padded::new(export));
    let terms = Terms { size: export.info().size, headers: Headers::Simple, contexts: Contexts::empty() };
    let shared = Arc::new(Shared::new(Limits::default()));
    let Link { stream, received } = link;
    let stream = stream.into();
    Connection::new(Settled { stream, input: received, session: Session::new(terms), export }, shared)
}
