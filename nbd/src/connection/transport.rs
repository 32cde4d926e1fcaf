//! The socket of one connection.

use super::encrypted::Encrypted;
use super::outbox::{Next, Outbox};
use super::plain::Plain;
use crate::{Client, Tls};
use bytes::BytesMut;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};
use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::io::poll_read_buf;

/// How long a client is given to take that the connection ends.
const LEAVE: Duration = Duration::from_secs(1);

/// How many bytes a unix socket may hold that its client has not taken yet. The kernel's own choice, 208 KiB, is less than
/// what is under way between a server and a client that copies: each would wait for the other most of the time.
const UNSENT: usize = 1 << 20;

/// A connected stream socket.
#[derive(Debug)]
pub enum Stream {
    /// A unix domain socket.
    Unix(UnixStream),
    /// A TCP socket.
    Tcp(TcpStream),
    /// One of both, encrypted.
    Tls(Box<Encrypted>),
    /// One of the first two, of which the runtime is not told.
    Aside(Aside),
}

/// A socket whose client is waited for awake. Were the runtime told of it as well, another thread would be woken for each
/// request.
#[derive(Debug)]
pub struct Aside {
    /// None when it could not be listened to again, which ends the connection.
    socket: Option<OwnedFd>,
    tcp: bool,
    /// The runtime that is told of it again.
    home: Handle,
}

impl Aside {
    fn socket(&self) -> io::Result<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
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
            let set =
                stream.set_nodelay(true).and_then(|()| Ok(sockopt::set_socket_keepalive(stream, true)?));
            if let Err(error) = set {
                tracing::warn!(%error, "cannot set options of a TCP connection");
            }
        }
    }

    /// Has the runtime that the caller is in tell of the socket, instead of the one that did until now.
    pub(crate) fn rehome(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => *stream = rehomed_unix(stream)?,
            Self::Tcp(stream) => *stream = rehomed_tcp(stream)?,
            Self::Tls(stream) => stream.rehome()?,
            Self::Aside(_) => self.listen()?,
        }
        Ok(())
    }

    /// Has the runtime not be told of the socket until something has to be waited for, unless it is encrypted, or this process
    /// has as many files open as it may.
    /// `home` is the runtime that is told of it then.
    pub(super) fn set_aside(&mut self, home: &Handle) {
        let (socket, tcp) = match self {
            Self::Unix(stream) => (AsFd::as_fd(&*stream), false),
            Self::Tcp(stream) => (AsFd::as_fd(&*stream), true),
            Self::Tls(_) | Self::Aside(_) => return,
        };
        if let Ok(socket) = socket.try_clone_to_owned() {
            *self = Self::Aside(Aside { socket: Some(socket), tcp, home: home.clone() });
        }
    }

    /// Whether the runtime is not told of the socket.
    pub(super) const fn is_aside(&self) -> bool {
        matches!(self, Self::Aside(_))
    }

    /// Has the runtime be told of the socket again.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        if let Self::Aside(aside) = self {
            let socket = aside.socket.take().ok_or(io::ErrorKind::NotConnected)?;
            let home = aside.home.clone();
            let _entered = home.enter();
            *self = match aside.tcp {
                true => Self::Tcp(TcpStream::from_std(socket.into())?),
                false => Self::Unix(UnixStream::from_std(socket.into())?),
            };
        }
        Ok(())
    }

    /// Makes room for replies that the client has yet to take, for it is not one that only greets. A TCP socket has as much
    /// as its link needs without this.
    pub(super) fn widen(&self) {
        match self {
            Self::Unix(stream) => widen(stream),
            Self::Tcp(_) | Self::Aside(_) => {}
            Self::Tls(stream) => stream.widen(),
        }
    }

    /// The stream encrypted, once the client has been told that it may begin.
    pub(super) async fn encrypt(self, tls: &Tls) -> io::Result<Stream> {
        let plain = match self {
            Self::Unix(stream) => Plain::from(stream),
            Self::Tcp(stream) => Plain::from(stream),
            Self::Tls(_) => return Err(io::Error::other("the connection is encrypted already")),
            Self::Aside(_) => return Err(io::Error::other("the connection is past its negotiation")),
        };
        Ok(Self::Tls(Box::new(Encrypted::accept(plain, tls).await?)))
    }

    /// Who is at the other end.
    pub(super) fn client(&self) -> Client {
        match self {
            Self::Unix(_) | Self::Tcp(_) | Self::Aside(_) => Client::default(),
            Self::Tls(stream) => stream.client(),
        }
    }

    /// Whether what is sent is given to the kernel as it is.
    pub(super) const fn is_plain(&self) -> bool {
        !matches!(self, Self::Tls(_))
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
            Self::Unix(_) | Self::Tcp(_) | Self::Aside(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => stream.poll_close(cx),
        }
    }

    /// Appends what has come to `input`. 0 bytes: no more will come.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        self.listen()?;
        match self {
            Self::Unix(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Self::Tcp(stream) => poll_read_buf(Pin::new(stream), cx, input),
            Self::Tls(stream) => stream.poll_fill(cx, input),
            Self::Aside(_) => Poll::Pending,
        }
    }

    /// As [`poll_fill`](Self::poll_fill), but asks the socket itself instead of waiting to be told of it.
    pub(super) fn fill_now(&mut self, input: &mut BytesMut) -> io::Result<Option<usize>> {
        match self {
            Self::Unix(stream) => append_now(stream.as_fd(), input),
            Self::Tcp(stream) => append_now(stream.as_fd(), input),
            Self::Tls(stream) => stream.fill_now(input),
            Self::Aside(aside) => append_now(aside.socket()?, input),
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
                Self::Aside(aside) => aside.socket().and_then(|socket| send(socket, &next)),
                Self::Tls(_) => return Poll::Ready(Ok(())),
            };
            let of_file = matches!(next, Next::File { .. });
            drop(next);
            match sent {
                Ok(sent) => outbox.advance(sent),
                // A disk does not give what was mapped, or the file has become shorter: the file itself is asked which.
                Err(error) if is_of_memory(&error) && outbox.unmap() => {}
                Err(error) if of_file && is_of_file(&error) => {
                    break_off(outbox, &error);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.listen()?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

/// The same socket, of the runtime that the caller is in.
pub(super) fn rehomed_unix(stream: &UnixStream) -> io::Result<UnixStream> {
    UnixStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// The same socket, of the runtime that the caller is in.
pub(super) fn rehomed_tcp(stream: &TcpStream) -> io::Result<TcpStream> {
    TcpStream::from_std(stream.as_fd().try_clone_to_owned()?.into())
}

/// Makes room for [`UNSENT`] bytes, or as much as this process may have: only with CAP_NET_ADMIN it is more than
/// net.core.wmem_max.
pub(super) fn widen(stream: &UnixStream) {
    // The kernel doubles what is asked for, to have room for its own records (socket(7), SO_SNDBUF).
    let bytes = UNSENT / 2;
    let widened = sockopt::set_socket_send_buffer_size_force(stream, bytes)
        .or_else(|_| sockopt::set_socket_send_buffer_size(stream, bytes));
    if let Err(error) = widened {
        tracing::debug!(%error, "a unix socket keeps the size it has");
    }
}

/// Whether an error is that of the file that was to be sent, not of the socket.
pub(super) fn is_of_file(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || matches!(errno, Some(Errno::IO | Errno::NODATA | Errno::BADMSG | Errno::UCLEAN | Errno::STALE))
}

/// Whether an error is that of memory that was to be sent.
fn is_of_memory(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::FAULT.raw_os_error())
}

/// Notes that the file that is to be sent next cannot be read.
pub(super) fn break_off(outbox: &mut Outbox, error: &io::Error) {
    outbox.break_off();
    if let Some((offset, len)) = outbox.broken() {
        tracing::debug!(%error, "{len} bytes at {offset:#x} cannot be read from a local file");
    }
}

/// Receives what has come already, if anything has.
pub(super) fn receive_now(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Option<usize>> {
    match recv(socket, bytes, RecvFlags::DONTWAIT) {
        Ok((_, received)) => Ok(Some(received)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The next request, if it has come already, appended to `input`.
fn append_now(socket: BorrowedFd<'_>, input: &mut BytesMut) -> io::Result<Option<usize>> {
    // Larger than any request without payload.
    let mut bytes = [0; 64];
    let received = receive_now(socket, &mut bytes)?;
    if let Some(received) = received {
        input.extend_from_slice(&bytes[..received]);
    }
    Ok(received)
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

#[cfg(test)]
mod tests;
