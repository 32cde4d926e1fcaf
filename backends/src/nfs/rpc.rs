//! ONC RPC (RFC 5531) over one TCP connection, with any number of calls under way.
//!
//! A task reads replies and hands each to the call with its XID, in whatever order the server answers. When the
//! connection ends, in whatever way, all calls fail and the connection is dead; who wants more makes another.

use super::xdr::{Reader, put_opaque};
use crate::Kind;
use crate::retry::Failure;
use crate::tries::Fault;
use bytes::{BufMut, Bytes};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

/// The largest reply: the largest READ that is asked for, and its head.
const MAX_REPLY: usize = super::MAX_READ as usize + 4096;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;
/// The last fragment of a record (RFC 5531 section 11).
const LAST_FRAGMENT: u32 = 0x8000_0000;

/// Who calls (RFC 5531 appendix A).
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A procedure: program, version, number.
pub(super) type Procedure = (u32, u32, u32);

#[derive(Debug)]
pub(super) struct Connection {
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    calls: Arc<Mutex<Calls>>,
    /// How many bytes of replies have come.
    received: Arc<AtomicU64>,
    next: AtomicU32,
    caller: Caller,
    reader: tokio::task::JoinHandle<()>,
}

/// The calls under way, by XID; none any more once the connection is dead.
#[derive(Debug)]
struct Calls {
    waiting: HashMap<u32, oneshot::Sender<Bytes>>,
    dead: bool,
}

fn locked(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn unreachable(what: impl Into<String>) -> Fault {
    Fault::new(Kind::Unreachable, Failure::Transient, what)
}

pub(super) fn wrong(what: impl Into<String>) -> Fault {
    Fault::new(Kind::BadAnswer, Failure::Wrong, what)
}

impl Connection {
    /// Connects to `host`, from a privileged port if this process may use one, for many servers insist.
    pub(super) async fn open(host: &str, port: u16, caller: Caller) -> Result<Connection, Fault> {
        let failed = |error: std::io::Error| unreachable(format!("the server cannot be reached: {error}"));
        let connect = async {
            let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
            for address in tokio::net::lookup_host((host, port)).await? {
                match connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
            .await
            .map_err(|_| unreachable("the server cannot be reached: it did not answer in time"))?
            .map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (reader, writer) = stream.into_split();
        let calls = Arc::new(Mutex::new(Calls { waiting: HashMap::new(), dead: false }));
        let received = Arc::<AtomicU64>::default();
        let reader = tokio::spawn(receive(reader, calls.clone(), received.clone()));
        let next = AtomicU32::new((crate::retry::jitter() * f64::from(u32::MAX)) as u32);
        Ok(Connection { writer: tokio::sync::Mutex::new(writer), calls, received, next, caller, reader })
    }

    /// How many bytes of replies have come so far.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends it: all calls fail.
    pub(super) fn close(&self) {
        die(&self.calls);
        self.reader.abort();
    }

    pub(super) fn is_dead(&self) -> bool {
        locked(&self.calls).dead
    }

    /// Calls `procedure` and returns its results, however long they take. Dropping the future forgets the call.
    pub(super) async fn call(&self, procedure: Procedure, arguments: &[u8]) -> Result<Reader, Fault> {
        let broken = || unreachable("the connection to the server broke");
        let xid = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut calls = locked(&self.calls);
            if calls.dead {
                return Err(broken());
            }
            calls.waiting.insert(xid, sender);
        }
        let _forget = Forget { calls: &self.calls, xid };
        let record = self.record(xid, procedure, arguments);
        {
            let mut writer = self.writer.lock().await;
            let mut unfinished = Unfinished { calls: &self.calls, armed: true };
            writer.write_all(&record).await.map_err(|_| broken())?;
            unfinished.armed = false;
        }
        results(Reader(receiver.await.map_err(|_| broken())?))
    }

    fn record(&self, xid: u32, (program, version, number): Procedure, arguments: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(128 + arguments.len());
        out.put_u32(0);
        for value in [xid, CALL, RPC_VERSION, program, version, number, AUTH_SYS] {
            out.put_u32(value);
        }
        let mut credential = Vec::new();
        credential.put_u32(0);
        put_opaque(&mut credential, b"thinorigin");
        for value in [self.caller.uid, self.caller.gid, 0] {
            credential.put_u32(value);
        }
        put_opaque(&mut out, &credential);
        out.put_u32(AUTH_NONE);
        out.put_u32(0);
        out.extend_from_slice(arguments);
        // Calls are short: a handle and a name at most.
        let len = (out.len() - 4) as u32 | LAST_FRAGMENT;
        out[..4].copy_from_slice(&len.to_be_bytes());
        out
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Takes a call that nobody waits for any more out of the table.
struct Forget<'a> {
    calls: &'a Mutex<Calls>,
    xid: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        locked(self.calls).waiting.remove(&self.xid);
    }
}

/// A record that may have been written in part: nothing can follow it, so the connection is dead.
struct Unfinished<'a> {
    calls: &'a Mutex<Calls>,
    armed: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.armed {
            die(self.calls);
        }
    }
}

fn die(calls: &Mutex<Calls>) {
    let mut calls = locked(calls);
    calls.dead = true;
    calls.waiting.clear();
}

/// Connects from a port below 1024 where that is allowed and one is free.
async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    for _ in 0..3 {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        let any = if address.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let port = 665 + (crate::retry::jitter() * 359.0) as u16;
        match socket.bind(SocketAddr::new(any, port)) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => break,
            Err(_) => continue,
            Ok(()) => {}
        }
        match socket.connect(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {}
            result => return result,
        }
    }
    TcpStream::connect(address).await
}

/// The task that reads replies until the connection ends.
async fn receive(mut reader: OwnedReadHalf, calls: Arc<Mutex<Calls>>, received: Arc<AtomicU64>) {
    let _ = receive_all(&mut reader, &calls, &received).await;
    die(&calls);
}

async fn receive_all(
    reader: &mut OwnedReadHalf,
    calls: &Mutex<Calls>,
    received: &AtomicU64,
) -> std::io::Result<()> {
    loop {
        let mut record = Vec::new();
        loop {
            let head = reader.read_u32().await?;
            let len = (head & !LAST_FRAGMENT) as usize;
            if record.len() + len > MAX_REPLY {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let had = record.len();
            record.reserve_exact(len);
            let mut rest = (&mut *reader).take(len as u64);
            while record.len() < had + len {
                match rest.read_buf(&mut record).await? {
                    0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                    n => received.fetch_add(n as u64, Ordering::Relaxed),
                };
            }
            if head & LAST_FRAGMENT != 0 {
                break;
            }
            if len == 0 {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
        }
        let mut reply = Reader(record.into());
        let Some(xid) = reply.u32() else { return Err(std::io::ErrorKind::InvalidData.into()) };
        // A reply that nobody waits for was for a call that timed out or was dropped.
        if let Some(waiting) = locked(calls).waiting.remove(&xid) {
            let _ = waiting.send(reply.0);
        }
    }
}

/// The results in a reply (RFC 5531 section 9).
fn results(mut reply: Reader) -> Result<Reader, Fault> {
    let garbled = || wrong("the server's reply cannot be understood");
    if reply.u32() != Some(REPLY) {
        return Err(garbled());
    }
    if reply.u32().ok_or_else(garbled)? != 0 {
        return Err(Fault::new(Kind::Denied, Failure::Final, "the server refuses calls of this user"));
    }
    reply.u32().ok_or_else(garbled)?;
    reply.opaque(400).ok_or_else(garbled)?;
    match reply.u32().ok_or_else(garbled)? {
        0 => Ok(reply),
        1..=3 => {
            let what = "the server does not serve this protocol on this port";
            Err(Fault::new(Kind::Unsupported, Failure::Final, what))
        }
        4 => Err(wrong("the server says that the call was garbled")),
        _ => Err(unreachable("the server failed")),
    }
}
