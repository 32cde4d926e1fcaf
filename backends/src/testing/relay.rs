//! A relay in front of a real server, which spoils what the server says. What clients say is passed on as it is.

use bytes::Bytes;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp};
use tokio::sync::watch;

/// What becomes of the bytes that a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// They are passed on.
    None,
    /// They are passed on until the relay has passed on so many altogether; then silence, until something else is said.
    Hold(u64),
    /// One of them is passed on each second.
    Drip,
    /// Each connection ends when it has passed on so many.
    Cut(u64),
    /// The last one of each piece of them is changed.
    Garble,
    /// These are sent instead, over and over again, for as long as the client takes them.
    Flood(Bytes),
}

/// A relay on a free loopback port. It ends when it is dropped, and its connections with it.
#[derive(Debug)]
pub struct Relay {
    port: u16,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    to: SocketAddr,
    spoil: watch::Sender<Spoil>,
    /// Changes when all connections are cut.
    age: watch::Sender<u64>,
    passed: AtomicU64,
}

impl Relay {
    /// A relay to the server on loopback port `port`, which need not be there yet.
    pub async fn start(port: u16) -> std::io::Result<Relay> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let state = Arc::new(State {
            to: (Ipv4Addr::LOCALHOST, port).into(),
            spoil: watch::Sender::new(Spoil::None),
            age: watch::Sender::new(0),
            passed: AtomicU64::new(0),
        });
        let port = listener.local_addr()?.port();
        let shared = state.clone();
        let task = tokio::spawn(async move {
            // Connections end with the relay.
            let mut links = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let state = shared.clone();
                links.spawn(async move {
                    let mut age = state.age.subscribe();
                    let born = *age.borrow_and_update();
                    tokio::select! {
                        _ = link(client, &state, born) => {}
                        _ = age.changed() => {}
                    }
                });
                while links.try_join_next().is_some() {}
            }
        });
        Ok(Relay { port, state, task })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What happens from now on, on all connections.
    pub fn spoil(&self, spoil: Spoil) {
        self.state.spoil.send_replace(spoil);
    }

    /// Cuts all connections there are.
    pub fn sever(&self) {
        self.state.age.send_modify(|age| *age += 1);
    }

    /// How many bytes of the server were passed on so far.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One connection, until either end of it is gone.
async fn link(client: TcpStream, state: &State, born: u64) -> std::io::Result<()> {
    let server = TcpStream::connect(state.to).await?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (mut client_reads, client_writes) = client.into_split();
    let (server_reads, mut server_writes) = server.into_split();
    tokio::select! {
        copied = tokio::io::copy(&mut client_reads, &mut server_writes) => copied.map(|_| ()),
        spoiled = spoil(server_reads, client_writes, state, born) => spoiled,
    }
}

/// The way from the server to the client.
async fn spoil(
    mut server: tcp::OwnedReadHalf,
    mut client: tcp::OwnedWriteHalf,
    state: &State,
    born: u64,
) -> std::io::Result<()> {
    let mut said = state.spoil.subscribe();
    let mut buffer = vec![0; 1 << 16];
    let mut mine = 0;
    loop {
        let read = server.read(&mut buffer).await?;
        let mut piece = &buffer[..read];
        if piece.is_empty() {
            return Ok(());
        }
        while !piece.is_empty() {
            let spoil = said.borrow_and_update().clone();
            // What is said after the connections were cut is not said of this one.
            if *state.age.borrow() != born {
                return Ok(());
            }
            let left = match &spoil {
                Spoil::None | Spoil::Garble => u64::MAX,
                Spoil::Hold(most) => most.saturating_sub(state.passed.load(Ordering::SeqCst)),
                Spoil::Cut(most) => most.saturating_sub(mine),
                Spoil::Drip => 1,
                Spoil::Flood(noise) => {
                    client.write_all(noise).await?;
                    // As fast as a network, and not as fast as this machine.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
            };
            let (now, later) = piece.split_at(piece.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            match (&spoil, now) {
                (Spoil::Garble, [first @ .., last]) => client.write_all(&[first, &[!last]].concat()).await?,
                _ => client.write_all(now).await?,
            }
            state.passed.fetch_add(now.len() as u64, Ordering::SeqCst);
            mine += now.len() as u64;
            piece = later;
            match spoil {
                Spoil::Cut(most) if mine >= most => return Ok(()),
                Spoil::Drip => {
                    let _ = tokio::time::timeout(Duration::from_secs(1), said.changed()).await;
                }
                Spoil::Hold(_) if !piece.is_empty() => drop(said.changed().await),
                _ => {}
            }
        }
    }
}
