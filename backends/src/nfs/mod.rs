//! NFS version 3 (RFC 1813) over TCP, for reading: one connection with many READs under way.
//!
//! A location does not say where the export ends and the path in it begins, so the file's directory is mounted if
//! the server allows that, else the directories above it. Every READ's reply carries the file's attributes, and size,
//! time of modification and file id must be those seen at open.
//!
//! Replies are parsed by the bounded reader in [`xdr`]: the codecs on offer allocate what a server's length says.

mod rpc;
mod xdr;

use crate::parts::{self, InFlight, SILENCE};
use crate::retry::{Failure, Policy};
use crate::tries::{Fault, Tries, error};
use crate::{Error, Identity, Kind, Location, Options, Source};
use bytes::{BufMut, Bytes};
use percent_encoding::percent_decode_str;
use rpc::{Caller, Connection, Procedure, wrong};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use tokio::sync::Mutex;
use tokio::time::{timeout, timeout_at};
use xdr::{Reader, put_opaque};

/// The most that one READ asks for.
const MAX_READ: u32 = 1 << 20;

/// File handles (RFC 1813 section 2.4).
const MAX_HANDLE: usize = 64;

const NFS_PORT: u16 = 2049;
const PORTMAP_PORT: u16 = 111;
const GETPORT: Procedure = (100_000, 2, 3);
const MNT: Procedure = (100_005, 3, 1);
const LOOKUP: Procedure = (100_003, 3, 3);
const READ: Procedure = (100_003, 3, 6);
const FSINFO: Procedure = (100_003, 3, 19);
const TCP: u32 = 6;

/// A file on an NFS server.
#[derive(Debug)]
pub struct NfsSource {
    identity: Identity,
    place: Place,
    attributes: Attributes,
    policy: Policy,
    in_flight: InFlight,
    open: Mutex<Option<Arc<Open>>>,
    /// Set for good when another version is seen.
    changed: OnceLock<Error>,
}

/// Where the file is.
#[derive(Debug)]
struct Place {
    host: String,
    port: Option<u16>,
    mount_port: Option<u16>,
    caller: Caller,
    /// Directories and the file's name, decoded.
    path: Vec<Vec<u8>>,
}

/// A connection and the file's handle on it.
#[derive(Debug)]
struct Open {
    connection: Connection,
    handle: Bytes,
    /// The most that the server answers to one READ.
    read_size: u32,
}

/// What must stay as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes {
    /// A regular file, and not a directory or a symbolic link.
    regular: bool,
    size: u64,
    file_id: u64,
    modified: (u32, u32),
}

impl NfsSource {
    /// Opens the file at `location` and pins its attributes.
    pub async fn open(location: &Location, options: &Options) -> Result<Self, Error> {
        let place = Place::of(location, options)?;
        let mut tries = Tries::new(options.policy.opening());
        let (open, attributes) = loop {
            let fault = match timeout_at(tries.deadline(), place.open()).await {
                Ok(Ok(opened)) => break opened,
                Ok(Err(fault)) => fault,
                Err(_) => tries.out_of_time(),
            };
            tries.failed(fault).await.map_err(|fault| error(location, &fault))?;
        };
        let (seconds, nanos) = attributes.modified;
        Ok(NfsSource {
            identity: Identity {
                location: location.to_string(),
                size: attributes.size,
                validator: format!("mtime:{seconds}.{nanos:09},fileid:{}", attributes.file_id),
            },
            place,
            attributes,
            policy: options.policy,
            in_flight: InFlight::new(),
            open: Mutex::new(Some(Arc::new(open))),
            changed: OnceLock::new(),
        })
    }

    /// The error of a change that was seen, if one was. Asks nobody.
    pub fn check(&self) -> Result<(), Error> {
        self.changed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// The connection, or another one if it is dead.
    async fn connected(&self) -> Result<Arc<Open>, Fault> {
        let mut slot = self.open.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.connection.is_dead()) {
            return Ok(open.clone());
        }
        let opened = timeout(SILENCE, self.place.open()).await;
        let (open, attributes) = opened.unwrap_or_else(|_| Err(parts::silent()))?;
        self.compare(attributes)?;
        Ok(slot.insert(Arc::new(open)).clone())
    }

    fn compare(&self, seen: Attributes) -> Result<(), Fault> {
        if seen == self.attributes {
            return Ok(());
        }
        Err(Fault::new(Kind::Changed, Failure::Final, "the file changed since it was opened"))
    }

    /// The bytes of `range`, in as many READs as the server needs, all under way at once.
    async fn try_read(&self, range: &Range<u64>) -> Result<Bytes, Fault> {
        let open = self.connected().await?;
        let parts = parts::in_parts(range, open.read_size, |part| self.read_part(&open, part));
        let parts = parts::steadily(parts, || open.connection.received()).await.unwrap_or_else(|| {
            open.connection.close();
            Err(parts::silent())
        });
        parts.inspect_err(|fault| {
            tracing::debug!(location = self.identity.location, fault = fault.what, "a READ failed");
        })
    }

    /// One READ, and those for the rest if the server sends less than was asked for.
    async fn read_part(&self, open: &Arc<Open>, range: Range<u64>) -> Result<Bytes, Fault> {
        let _permit = self.in_flight.enter(range.end - range.start).await;
        parts::whole(range, |rest| self.read_once(open, rest)).await
    }

    /// At least one byte of `range`, from its start.
    async fn read_once(&self, open: &Arc<Open>, range: Range<u64>) -> Result<Bytes, Fault> {
        let garbled = || wrong("the server's answer to a READ cannot be understood");
        let count = u32::try_from(range.end - range.start).map_err(|_| garbled())?;
        let mut arguments = Vec::with_capacity(96);
        put_opaque(&mut arguments, &open.handle);
        arguments.put_u64(range.start);
        arguments.put_u32(count);
        let mut reply = open.connection.call(READ, &arguments).await?;
        let status = reply.u32().ok_or_else(garbled)?;
        if status == STALE || status == BAD_HANDLE {
            // The server forgot the handle, or the file is gone: looked up again, it says which.
            let mut slot = self.open.lock().await;
            if slot.as_ref().is_some_and(|current| Arc::ptr_eq(current, open)) {
                *slot = None;
            }
            return Err(rpc::unreachable("the server does not know the file's handle any more"));
        }
        let attributes = post_op_attributes(&mut reply).ok_or_else(garbled)?;
        if status != 0 {
            return Err(refusal(status));
        }
        self.compare(
            attributes.ok_or_else(|| wrong("the answer to a READ does not say which file it is of"))?,
        )?;
        let (sent, _end) = (reply.u32().ok_or_else(garbled)?, reply.flag().ok_or_else(garbled)?);
        let data = reply.opaque(count as usize).ok_or_else(garbled)?;
        if data.len() != sent as usize || data.is_empty() {
            return Err(wrong(
                "the server sent none of the bytes that were asked for, or not as many as it says",
            ));
        }
        Ok(data)
    }
}

impl Source for NfsSource {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        parts::tried(self.policy, &self.identity, &self.changed, &range, || self.try_read(&range)).await
    }
}

impl Place {
    fn of(location: &Location, options: &Options) -> Result<Place, Error> {
        let wrong = |what: &str| Error::new(Kind::Location, format!("{location}: {what}"));
        let url = location.as_url().ok_or_else(|| wrong("not an NFS location"))?;
        let host = url.host_str().ok_or_else(|| wrong("no host"))?.trim_matches(['[', ']']).to_owned();
        let path: Vec<Vec<u8>> = url
            .path()
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).collect())
            .collect();
        if path.is_empty() {
            return Err(wrong("no path after the host"));
        }
        if path
            .iter()
            .any(|part| part.len() > 255 || part == b".." || part.contains(&b'/') || part.contains(&0))
        {
            return Err(wrong("a part of its path is not a file name"));
        }
        let section = options.credentials.section(location);
        let caller = Caller {
            uid: section.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
            gid: section.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        };
        Ok(Place { host, port: url.port(), mount_port: section.mount_port, caller, path })
    }

    async fn open(&self) -> Result<(Open, Attributes), Fault> {
        let connection = Connection::open(&self.host, self.port.unwrap_or(NFS_PORT), self.caller).await?;
        let (root, depth) = self.mount().await?;
        let mut handle = root;
        let mut attributes = None;
        for name in &self.path[depth..] {
            (handle, attributes) = lookup(&connection, &handle, name).await?;
        }
        let attributes = attributes.ok_or_else(|| wrong("the server does not say what the file is"))?;
        if !attributes.regular {
            return Err(Fault::new(Kind::Unsupported, Failure::Final, "not a regular file"));
        }
        let read_size = read_size(&connection, &handle).await?;
        Ok((Open { connection, handle, read_size }, attributes))
    }

    /// The handle of the deepest directory on the way to the file that can be mounted, and how many of the path's
    /// parts it covers.
    async fn mount(&self) -> Result<(Bytes, usize), Fault> {
        let port = match (self.mount_port, self.port) {
            (Some(port), _) => port,
            (None, port) => match self.ask_port().await {
                Ok(found) => found,
                // A server with one port for all it does needs nobody to say so.
                Err(fault) => port.ok_or(fault)?,
            },
        };
        let connection = Connection::open(&self.host, port, self.caller).await?;
        let mut refused = refusal(NO_ENTRY);
        for depth in (0..self.path.len()).rev() {
            let mut directory = vec![b'/'];
            directory.extend(self.path[..depth].join(&b'/'));
            let mut arguments = Vec::new();
            put_opaque(&mut arguments, &directory);
            let mut reply = connection.call(MNT, &arguments).await?;
            match reply.u32() {
                Some(0) => {
                    let handle = reply
                        .opaque(MAX_HANDLE)
                        .ok_or_else(|| wrong("the server mounts without a handle"))?;
                    return Ok((handle, depth));
                }
                Some(status) => refused = refusal(status),
                None => return Err(wrong("the server's answer to a mount cannot be understood")),
            }
        }
        Err(refused)
    }

    /// Where the MOUNT protocol is served, as the port mapper says.
    async fn ask_port(&self) -> Result<u16, Fault> {
        let connection = Connection::open(&self.host, PORTMAP_PORT, self.caller).await?;
        let mut arguments = Vec::new();
        [MNT.0, MNT.1, TCP, 0].iter().for_each(|value| arguments.put_u32(*value));
        let port = connection.call(GETPORT, &arguments).await?.u32();
        port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0).ok_or_else(|| {
            Fault::new(Kind::Unsupported, Failure::Final, "the server does not offer NFS version 3 mounts")
        })
    }
}

async fn lookup(
    connection: &Connection,
    directory: &Bytes,
    name: &[u8],
) -> Result<(Bytes, Option<Attributes>), Fault> {
    let garbled = || wrong("the server's answer to a LOOKUP cannot be understood");
    let mut arguments = Vec::new();
    put_opaque(&mut arguments, directory);
    put_opaque(&mut arguments, name);
    let mut reply = connection.call(LOOKUP, &arguments).await?;
    match reply.u32().ok_or_else(garbled)? {
        0 => {
            let handle = reply.opaque(MAX_HANDLE).ok_or_else(garbled)?;
            Ok((handle, post_op_attributes(&mut reply).ok_or_else(garbled)?))
        }
        status => Err(refusal(status)),
    }
}

/// The most that one READ may ask the server for.
async fn read_size(connection: &Connection, handle: &Bytes) -> Result<u32, Fault> {
    let garbled = || wrong("the server's answer to an FSINFO cannot be understood");
    let mut arguments = Vec::new();
    put_opaque(&mut arguments, handle);
    let mut reply = connection.call(FSINFO, &arguments).await?;
    let status = reply.u32().ok_or_else(garbled)?;
    if status != 0 {
        return Err(refusal(status));
    }
    post_op_attributes(&mut reply).ok_or_else(garbled)?;
    Ok(reply.u32().ok_or_else(garbled)?.clamp(4096, MAX_READ))
}

/// `post_op_attr`, of which four fields matter (RFC 1813 section 2.6). The outer option is for garbled ones.
fn post_op_attributes(reply: &mut Reader) -> Option<Option<Attributes>> {
    if !reply.flag()? {
        return Some(None);
    }
    let regular = reply.u32()? == REGULAR;
    // mode, nlink, uid, gid
    reply.skip(16)?;
    let size = reply.u64()?;
    // used, rdev, fsid
    reply.skip(24)?;
    let file_id = reply.u64()?;
    // atime
    reply.skip(8)?;
    let modified = (reply.u32()?, reply.u32()?);
    // ctime
    reply.skip(8)?;
    Some(Some(Attributes { regular, size, file_id, modified }))
}

/// `NF3REG`.
const REGULAR: u32 = 1;

const NO_ENTRY: u32 = 2;
const STALE: u32 = 70;
const BAD_HANDLE: u32 = 10001;

/// What an `nfsstat3` or a `mountstat3` means: their numbers agree (RFC 1813 sections 2.6 and 5.1.5).
fn refusal(status: u32) -> Fault {
    let (kind, failure, what) = match status {
        NO_ENTRY | 20 => (Kind::NotFound, Failure::Final, "no such file"),
        1 | 13 => (Kind::Denied, Failure::Final, "the server denies access"),
        21 | 22 => (Kind::Unsupported, Failure::Final, "not a file that can be read"),
        5 | 10006 | 10008 | STALE => (Kind::Unreachable, Failure::Transient, "the server cannot read it now"),
        _ => (Kind::BadAnswer, Failure::Wrong, "the server did not do what was asked"),
    };
    Fault::new(kind, failure, format!("{what} (NFS status {status})"))
}

#[cfg(test)]
mod lies;
#[cfg(test)]
mod tests;
