//! The server: listeners in, connections out.

use crate::connection::{Connection, End, Shared, Stream, negotiate};
use crate::{Exports, Tls};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What clients may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at a time; one more is closed as soon as it is accepted.
    /// Each may hold 1 MiB of replies that its client has not taken, in the kernel, besides what the other limits count.
    pub max_connections: usize,
    /// How long a negotiation may take in all.
    pub handshake: Duration,
    /// Bytes that reads of one connection may have under way before it is not read from any more. One request more is
    /// always possible.
    pub connection_memory: u64,
    /// Bytes that reads of all connections may have in memory, from the moment they are fetched until they are sent. At
    /// least one request of the largest size.
    pub memory: u64,
    /// How long a client may take nothing of what waits for it before it is dropped.
    pub send_stall: Duration,
    /// How long requests under way may take to be answered once the server is to stop.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            handshake: Duration::from_secs(10),
            connection_memory: 32 << 20,
            memory: 512 << 20,
            send_stall: Duration::from_secs(120),
            drain: Duration::from_secs(25),
        }
    }
}

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// A unix domain socket.
    Unix(UnixListener),
    /// A TCP port.
    Tcp(TcpListener),
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl Listener {
    /// The next client and how to call it.
    async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (stream.into(), Peer::Unix)),
            Self::Tcp(listener) => {
                listener.accept().await.map(|(stream, peer)| (stream.into(), Peer::Tcp(peer)))
            }
        }
    }
}

/// A client, for logs.
#[derive(Clone, Copy)]
enum Peer {
    Unix,
    Tcp(std::net::SocketAddr),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix => f.write_str("a client on the unix socket"),
            Self::Tcp(peer) => write!(f, "the client {peer}"),
        }
    }
}

/// A server of `X`'s exports. Clones are the same server: they share its limits.
#[derive(Debug)]
pub struct Server<X> {
    exports: Arc<X>,
    shared: Arc<Shared>,
    /// One permit per connection that may still come.
    connections: Arc<Semaphore>,
    tls: Option<Tls>,
}

impl<X> Clone for Server<X> {
    fn clone(&self) -> Self {
        Self {
            exports: Arc::clone(&self.exports),
            shared: Arc::clone(&self.shared),
            connections: Arc::clone(&self.connections),
            tls: self.tls.clone(),
        }
    }
}

impl<X: Exports> Server<X> {
    /// A server that listens nowhere yet.
    pub fn new(exports: Arc<X>, limits: Limits) -> Self {
        let connections = limits.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            exports,
            shared: Arc::new(Shared::new(limits)),
            connections: Arc::new(Semaphore::new(connections)),
            tls: None,
        }
    }

    /// The same server, but every connection is encrypted: nothing else is negotiated with a client before that.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Accepts clients and serves each in a task of its own, until `shutdown` is cancelled. Then it stops listening,
    /// answers the requests under way (for at most [`Limits::drain`]) and returns. What goes wrong with one client is
    /// logged and ends that client's connection only. Dropping the future stops listening; connections live on.
    pub async fn serve(&self, listener: Listener, shutdown: CancellationToken) -> io::Result<()> {
        let clients = TaskTracker::new();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
                        tracing::warn!(
                            "{peer} was turned away: {} are connected",
                            self.shared.limits.max_connections
                        );
                        continue;
                    };
                    let (server, shutdown) = (self.clone(), shutdown.clone());
                    clients.spawn(async move {
                        let result = server.serve_stream(stream, shutdown).await;
                        drop(permit);
                        match result {
                            Ok(()) => tracing::debug!("{peer} left"),
                            Err(error) => tracing::info!("the connection of {peer} ended: {error}"),
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors or memory, most likely: what is connected goes on, and the backlog waits.
                    tracing::warn!("cannot accept a client: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        clients.close();
        clients.wait().await;
        Ok(())
    }

    /// Serves one client from its negotiation on, until it leaves or `shutdown` is cancelled and what is under way is
    /// answered. It does not count against [`Limits::max_connections`].
    pub async fn serve_stream(
        &self,
        stream: impl Into<Stream>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let negotiation = negotiate(stream.into(), &*self.exports, self.tls.as_ref());
        let negotiation = timeout(self.shared.limits.handshake, negotiation);
        let Some(negotiated) = shutdown.run_until_cancelled(negotiation).await else { return Ok(()) };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the negotiation took too long");
        let Some((stream, session, export, input)) = negotiated.map_err(late)?? else { return Ok(()) };
        let connection = Connection::new(stream, input, session, export, Arc::clone(&self.shared));
        let (End::Left(mut stream) | End::Drained(mut stream, _)) = connection.run(shutdown).await?;
        stream.close().await;
        Ok(())
    }
}
