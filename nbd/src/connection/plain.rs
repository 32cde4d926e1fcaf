//! The socket under an encrypted stream.

use super::transport::{receive_now, rehomed_tcp, rehomed_unix, widen};
use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;

/// A socket that can be asked for what came, besides waiting to be told of it.
#[derive(Debug)]
pub(super) struct Plain {
    socket: Either<UnixStream, TcpStream>,
    eager: bool,
}

impl From<UnixStream> for Plain {
    fn from(stream: UnixStream) -> Self {
        Self { socket: Either::Left(stream), eager: false }
    }
}

impl From<TcpStream> for Plain {
    fn from(stream: TcpStream) -> Self {
        Self { socket: Either::Right(stream), eager: false }
    }
}

impl Plain {
    /// Whether to ask. A read that is pending then wakes nobody.
    pub(super) fn set_eager(&mut self, eager: bool) {
        self.eager = eager;
    }

    /// Has the runtime that the caller is in tell of the socket.
    pub(super) fn rehome(&mut self) -> io::Result<()> {
        self.socket = match &self.socket {
            Either::Left(stream) => Either::Left(rehomed_unix(stream)?),
            Either::Right(stream) => Either::Right(rehomed_tcp(stream)?),
        };
        Ok(())
    }

    pub(super) fn widen(&self) {
        if let Either::Left(stream) = &self.socket {
            widen(stream);
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.eager {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let socket = match &self.socket {
            Either::Left(stream) => stream.as_fd(),
            Either::Right(stream) => stream.as_fd(),
        };
        match receive_now(socket, buf.initialize_unfilled())? {
            Some(received) => {
                buf.advance(received);
                Poll::Ready(Ok(()))
            }
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Plain {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
