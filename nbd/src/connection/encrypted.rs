//! A connection's socket under TLS.

use super::lines::Lines;
use super::outbox::{Next, Outbox};
use super::plain::Plain;
use super::transport::break_off;
use crate::{Client, Tls};
use bytes::BytesMut;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::AsyncWrite;
use tokio_rustls::server::TlsStream;
use tokio_util::io::poll_read_buf;

/// How much of a file is read at a time to be encrypted: some of the largest TLS records.
const CHUNK: usize = 64 << 10;

/// An encrypted stream.
#[derive(Debug)]
pub struct Encrypted {
    stream: TlsStream<Plain>,
    /// What was read of a file to be encrypted next.
    chunk: Lines,
    /// Whether something that was taken may not have left yet.
    unsent: bool,
}

impl Encrypted {
    /// Does the server's side of the TLS handshake.
    pub(super) async fn accept(plain: Plain, tls: &Tls) -> io::Result<Encrypted> {
        let stream = tls.acceptor().accept(plain).await?;
        Ok(Encrypted { stream, chunk: Lines::default(), unsent: false })
    }

    /// Who is at the other end.
    pub(super) fn client(&self) -> Client {
        let (_, session) = self.stream.get_ref();
        let shown = session.peer_certificates().and_then(|chain| chain.first());
        Client::with(shown.map(|certificate| certificate.clone().into_owned()))
    }

    /// Has the runtime that the caller is in tell of the socket.
    pub(super) fn rehome(&mut self) -> io::Result<()> {
        self.stream.get_mut().0.rehome()
    }

    pub(super) fn widen(&self) {
        self.stream.get_ref().0.widen();
    }

    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        input: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(&mut self.stream), cx, input)
    }

    /// As [`poll_fill`](Self::poll_fill), but asks the socket itself instead of waiting to be told of it.
    pub(super) fn fill_now(&mut self, input: &mut BytesMut) -> io::Result<Option<usize>> {
        self.stream.get_mut().0.set_eager(true);
        // Nobody is told when this one is pending: it is asked again, or there is another one that is.
        let filled = self.poll_fill(&mut Context::from_waker(Waker::noop()), input);
        self.stream.get_mut().0.set_eager(false);
        match filled {
            Poll::Ready(filled) => filled.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Whether [`poll_send`](Self::poll_send) has something to do even if the outbox is empty.
    pub(super) fn has_unsent(&self) -> bool {
        self.unsent
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, outbox: &mut Outbox) -> Poll<io::Result<()>> {
        let mut stream = Pin::new(&mut self.stream);
        loop {
            let Some(next) = outbox.next() else { break };
            let taken = match &next {
                Next::Slices { slices, .. } => ready!(stream.as_mut().poll_write_vectored(cx, slices))?,
                Next::File { file, offset, len } => {
                    self.chunk.grow(CHUNK);
                    match rustix::io::pread(file, &mut self.chunk[..CHUNK.min(*len as usize)], *offset) {
                        Ok(read @ 1..) => ready!(stream.as_mut().poll_write(cx, &self.chunk[..read]))?,
                        failed => {
                            let error = match failed {
                                Ok(_) => io::ErrorKind::UnexpectedEof.into(),
                                Err(errno) => errno.into(),
                            };
                            drop(next);
                            break_off(outbox, &error);
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
            };
            drop(next);
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent = true;
            outbox.advance(taken);
        }
        if self.unsent {
            ready!(stream.poll_flush(cx))?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client that nothing follows, so that it knows that nobody cut the connection.
    pub(super) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
