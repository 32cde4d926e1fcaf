//! The socket of one connection.

use super::encrypted::{Encrypted, Plain};
use super::outbox::{Next, Outbox};
use crate::{Client, Tls};
use bytes::BytesMut;
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

/// How long a client is given to take that the connection ends.
const LEAVE: Duration = Duration::from_secs(1);

/// A connected stream socket.
#[derive(Debug)]
pub enum Stream {
    /// A unix domain socket.
    Unix(UnixStream),
    /// A TCP socket.
    Tcp(TcpStream),
    /// One of both, encrypted.
    Tls(Box<Encrypted>),
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl Stream {
    /// Options that suit requests and replies: no waiting for more bytes, and a peer that vanished is noticed.
    pub(super) fn configure(&self) {
        if let Self::Tcp(stream) = self {
            let set = stream
                .set_nodelay(true)
                .and_then(|()| Ok(rustix::net::sockopt::set_socket_keepalive(stream, true)?));
            if let Err(error) = set {
                tracing::warn!(%error, "cannot set options of a TCP connection");
            }
        }
    }

    /// The stream encrypted, once the client has been told that it may begin.
    pub(super) async fn encrypt(self, tls: &Tls) -> io::Result<Stream> {
        let plain = match self {
            Self::Unix(stream) => Plain::Left(stream),
            Self::Tcp(stream) => Plain::Right(stream),
            Self::Tls(_) => return Err(io::Error::other("the connection is encrypted already")),
        };
        Ok(Self::Tls(Box::new(Encrypted::accept(plain, tls).await?)))
    }

    /// Who is at the other end.
    pub(super) fn client(&self) -> Client {
        match self {
            Self::Unix(_) | Self::Tcp(_) => Client::default(),
            Self::Tls(stream) => stream.client(),
        }
    }

    /// Whether [`poll_send`](Self::poll_send) has something to do even if the outbox is empty.
    pub(super) fn has_unsent(&self) -> bool {
        matches!(self, Self::Tls(stream) if stream.has_unsent())
    }

    /// Takes leave, for a moment at most: the client may be gone already, which is as good.
    pub(crate) async fn close(&mut self) {
        let _ = timeout(LEAVE, poll_fn(|cx| self.poll_close(cx))).await;
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Unix(_) | Self::Tcp(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => stream.poll_close(cx),
        }
    }

    /// Appends what has come to `input`. 0 bytes: no more will come.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Unix(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Self::Tcp(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Self::Tls(stream) => stream.poll_fill(cx, input),
        }
    }

    /// Sends from `outbox` until it is empty or the socket is full.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<io::Result<()>> {
        if let Self::Tls(stream) = self {
            return stream.poll_send(cx, outbox);
        }
        loop {
            let Some(next) = outbox.next() else { return Poll::Ready(Ok(())) };
            let sent = match self {
                Self::Unix(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), &next))
                }
                Self::Tcp(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_io(Interest::WRITABLE, || send(stream.as_fd(), &next))
                }
                Self::Tls(_) => return Poll::Ready(Ok(())),
            };
            let of_file = matches!(next, Next::File { .. });
            drop(next);
            match sent {
                Ok(sent) => outbox.advance(sent),
                Err(error) if of_file && is_of_file(&error) => {
                    break_off(outbox, &error);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// Whether an error is that of the file that was to be sent, not of the socket.
pub(super) fn is_of_file(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(errno, Some(Errno::IO | Errno::NODATA | Errno::BADMSG | Errno::UCLEAN | Errno::STALE))
}

/// Notes that the file that is to be sent next cannot be read.
pub(super) fn break_off(outbox: &mut Outbox, error: &io::Error) {
    outbox.break_off();
    if let Some((offset, len)) = outbox.broken() {
        tracing::debug!(%error, "{len} bytes at {offset:#x} cannot be read from a local file");
    }
}

/// Sends what fits.
fn send(socket: BorrowedFd<'_>, next: &Next<'_>) -> io::Result<usize> {
    match next {
        Next::Slices { slices, more } => {
            let mut flags = SendFlags::NOSIGNAL;
            flags.set(SendFlags::MORE, *more);
            Ok(sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags)?)
        }
        Next::File { file, offset, len } => {
            let mut offset = *offset;
            match rustix::fs::sendfile(socket, file, Some(&mut offset), *len as usize)? {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a local file is shorter than it was")),
                sent => Ok(sent),
            }
        }
    }
}
