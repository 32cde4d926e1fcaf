//! The server: listeners in, connections out.

use crate::connection::{Connection, Shared, Stream, negotiate};
use crate::door::{Door, within};
use crate::thread::Threads;
use crate::{Exports, Tls};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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
    /// The same listener, for the runtime that the caller is in.
    fn moved(self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(listener) => UnixListener::from_std(listener.into_std()?)?.into(),
            Self::Tcp(listener) => TcpListener::from_std(listener.into_std()?)?.into(),
        })
    }

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

/// A client's place among those that may be connected.
struct Visit {
    peer: Peer,
    permit: OwnedSemaphorePermit,
}

impl Peer {
    /// Tells of the end of its connection.
    fn left(&self, how: io::Result<()>) {
        match how {
            Ok(()) => tracing::debug!("{self} left"),
            Err(error) => tracing::info!("the connection of {self} ended: {error}"),
        }
    }
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
    threads: Arc<Threads>,
}

impl<X> Clone for Server<X> {
    fn clone(&self) -> Self {
        Self {
            exports: Arc::clone(&self.exports),
            shared: Arc::clone(&self.shared),
            connections: Arc::clone(&self.connections),
            tls: self.tls.clone(),
            threads: Arc::clone(&self.threads),
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
            threads: Arc::default(),
        }
    }

    /// The same server, but every connection is encrypted: nothing else is negotiated with a client before that.
    #[must_use]
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Accepts clients and serves each on one of a few threads, until `shutdown` is cancelled. Then it stops listening,
    /// answers the requests under way (for at most [`Limits::drain`]) and returns. What goes wrong with one client is
    /// logged and ends that client's connection only. Clients are accepted and negotiated with on a thread of its own, of
    /// lower priority. Dropping the future stops listening, and negotiating; other connections live on. Fails where the
    /// thread cannot be started.
    pub async fn serve(&self, listener: Listener, shutdown: CancellationToken) -> io::Result<()> {
        let door = Door::open()?;
        let clients = TaskTracker::new();
        let accepting = self.clone().accept(listener, Handle::current(), clients.clone(), shutdown);
        door.spawn(accepting).await.map_err(io::Error::other)??;
        clients.close();
        clients.wait().await;
        Ok(())
    }

    /// Accepts clients, and negotiates with them, where it runs, and has `inside` serve them.
    async fn accept(
        self,
        listener: Listener,
        inside: Handle,
        clients: TaskTracker,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let listener = listener.moved()?;
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
                    let (server, inside, shutdown) = (self.clone(), inside.clone(), shutdown.clone());
                    let served = clients.clone();
                    clients.spawn(async move {
                        match within(&inside, server.greet(stream, &shutdown)).await {
                            Ok(Some(connection)) => {
                                let visit = Visit { peer, permit };
                                // Not from here: a thread has the claim to the processor of the one that starts it.
                                let (tracker, runtime) = (served.clone(), inside.clone());
                                let seat =
                                    async move { server.seat(connection, shutdown, visit, &tracker, inside) };
                                served.spawn_on(seat, &runtime);
                            }
                            ended => peer.left(ended.map(drop)),
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
        Ok(())
    }

    /// Negotiates and serves the first requests. `None`: the client left.
    async fn greet(
        &self,
        stream: Stream,
        shutdown: &CancellationToken,
    ) -> io::Result<Option<Connection<X::Export>>> {
        match self.negotiate(stream, shutdown).await? {
            Some(connection) => connection.greet(shutdown).await,
            None => Ok(None),
        }
    }

    /// Has one of the threads that serve go on with a client that was greeted; `inside` has what it begins and leaves to
    /// itself.
    fn seat(
        self,
        mut connection: Connection<X::Export>,
        shutdown: CancellationToken,
        visit: Visit,
        served: &TaskTracker,
        inside: Handle,
    ) {
        let seat = match self.threads.seat() {
            Ok(seat) => seat,
            Err(error) => return visit.peer.left(Err(error)),
        };
        let runtime = seat.runtime().clone();
        let serve = async move {
            let result = async {
                connection.rehome()?;
                within(&inside, connection.run(shutdown)).await?.close().await;
                Ok(())
            };
            let result = result.await;
            drop(visit.permit);
            visit.peer.left(result);
            // The threads last as long as anybody does who is on them.
            drop((seat, self));
        };
        served.spawn_on(serve, &runtime);
    }

    /// Serves one client from its negotiation on, until it leaves or `shutdown` is cancelled and what is under way is
    /// answered. It does not count against [`Limits::max_connections`].
    pub async fn serve_stream(
        &self,
        stream: impl Into<Stream>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let Some(connection) = self.negotiate(stream.into(), &shutdown).await? else { return Ok(()) };
        connection.run(shutdown).await?.close().await;
        Ok(())
    }

    /// Negotiates. `None`: there is nothing to be served.
    async fn negotiate(
        &self,
        stream: Stream,
        shutdown: &CancellationToken,
    ) -> io::Result<Option<Connection<X::Export>>> {
        let negotiation = negotiate(stream, &*self.exports, self.tls.as_ref());
        let negotiation = timeout(self.shared.limits.handshake, negotiation);
        let Some(negotiated) = shutdown.run_until_cancelled(negotiation).await else { return Ok(None) };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the negotiation took too long");
        let settled = negotiated.map_err(late)??;
        Ok(settled.map(|settled| Connection::new(settled, Arc::clone(&self.shared))))
    }
}
