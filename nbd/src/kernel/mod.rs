//! Network block devices of the Linux kernel: `/dev/nbdN` over generic netlink.
//!
//! The kernel takes connected stream sockets and speaks the transmission phase on them, with simple replies and without
//! negotiation. One end of a socket pair is enough; the other is served with
//! [`serve_transmission`](crate::serve_transmission). A device belongs to the kernel: it outlives the process that made
//! it, and when its sockets are closed, requests wait for [`Connect::dead_connection_timeout`] until
//! [`Device::reconnect`] brings new ones.
//!
//! All functions block for a moment. The facts are those of `drivers/block/nbd.c`.

mod error;
mod message;
mod netlink;
mod sysfs;

pub use error::{Error, ErrorKind};

use crate::wire::consts::TransmissionFlags;
use message::{Attributes, attribute, attributes};
use netlink::{Command, call};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};
use sysfs::Sysfs;

const ATTR_INDEX: u16 = 1;
const ATTR_SIZE_BYTES: u16 = 2;
const ATTR_BLOCK_SIZE_BYTES: u16 = 3;
const ATTR_TIMEOUT: u16 = 4;
const ATTR_SERVER_FLAGS: u16 = 5;
const ATTR_CLIENT_FLAGS: u16 = 6;
const ATTR_SOCKETS: u16 = 7;
const ATTR_DEAD_CONN_TIMEOUT: u16 = 8;
const ATTR_DEVICE_LIST: u16 = 9;
const ATTR_BACKEND_IDENTIFIER: u16 = 10;
const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

/// Size of a sector, and of the blocks devices are addressed in, in bytes.
const SECTOR: u32 = 512;
/// How long udev and the kernel may take to show or to let go of a device.
const SETTLE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// What a device is connected with. The kernel keeps what is not said from the device's previous life, so that all of it
/// is always said.
#[derive(Clone, Debug)]
pub struct Connect {
    /// The device's number; without one, the kernel picks a free one.
    pub index: Option<u32>,
    /// Size in bytes; the device is rounded up to whole sectors of 512 bytes.
    pub size: u64,
    /// How long a reply may take before the kernel gives the socket up, to the second. A reply that comes later costs a
    /// socket, so that the server has to answer, if with an error, before.
    pub request_timeout: Duration,
    /// How long requests wait for new sockets when all are dead, to the second; then they fail.
    pub dead_connection_timeout: Duration,
    /// What the kernel shows in `/sys/block/nbdN/backend`, and checks before it accepts new sockets. Linux before 5.14
    /// ignores it.
    pub backend: String,
    /// Largest request in KiB. The kernel's own limit is 32 MiB, which is much for one reply to a cold read.
    pub max_sectors_kb: u32,
    /// How far the page cache reads ahead, in KiB.
    pub read_ahead_kb: u32,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            index: None,
            size: 0,
            request_timeout: Duration::from_secs(30),
            dead_connection_timeout: Duration::from_secs(120),
            backend: String::new(),
            max_sectors_kb: 1024,
            read_ahead_kb: 1024,
        }
    }
}

impl Connect {
    /// What CONNECT and RECONFIGURE have in common.
    fn attributes(&self, index: Option<u32>, sockets: &[impl AsFd]) -> Attributes {
        let nested = sockets.iter().fold(Attributes::default(), |nested, socket| {
            // A valid descriptor is not negative.
            let fd = socket.as_fd().as_raw_fd() as u32;
            nested.nested(SOCK_ITEM, &Attributes::default().u32(SOCK_FD, fd))
        });
        let mut attributes = Attributes::default()
            .u64(ATTR_TIMEOUT, self.request_timeout.as_secs())
            .u64(ATTR_DEAD_CONN_TIMEOUT, self.dead_connection_timeout.as_secs())
            // Neither destroyed when disconnected nor disconnected when closed.
            .u64(ATTR_CLIENT_FLAGS, 0);
        if !sockets.is_empty() {
            attributes = attributes.nested(ATTR_SOCKETS, &nested);
        }
        if let Some(index) = index {
            attributes = attributes.u32(ATTR_INDEX, index);
        }
        if !self.backend.is_empty() {
            attributes = attributes.string(ATTR_BACKEND_IDENTIFIER, &self.backend);
        }
        attributes
    }
}

/// Makes a read-only device of `sockets`, connected stream sockets on whose other ends the server already answers: udev
/// reads from the device at once. The kernel has its own references; the caller closes its descriptors. Returns when the
/// device can be opened.
pub fn connect(connect: &Connect, sockets: &[impl AsFd]) -> Result<Device, Error> {
    let flags =
        TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN;
    let size = connect.size.next_multiple_of(u64::from(SECTOR));
    let attributes = connect
        .attributes(connect.index, sockets)
        .u64(ATTR_SIZE_BYTES, size)
        .u64(ATTR_BLOCK_SIZE_BYTES, u64::from(SECTOR))
        .u64(ATTR_SERVER_FLAGS, u64::from(flags.bits()));
    if let Some(index) = connect.index {
        Device::open(index).left_by_nobody()?;
    }
    let answer = call(Command::Connect, &attributes).map_err(|error| match connect.index {
        Some(index) => error.of(index),
        None => error,
    })?;
    let index = attribute(&answer, ATTR_INDEX).and_then(number).ok_or_else(|| {
        Error::new(ErrorKind::Other, "the kernel does not say which device it has connected".into())
    })?;
    let device = Device::open(index);
    match device.set_up(connect, size) {
        Ok(()) => Ok(device),
        Err(error) => {
            // The first error is the one to report.
            let _ = device.disconnect();
            Err(error)
        }
    }
}

/// The connected devices whose backend begins with `backend`; all of them if it is empty. Linux before 5.14 knows no
/// backends.
pub fn devices(backend: &str) -> Result<Vec<Device>, Error> {
    let connected = Sysfs::indices()?.into_iter().filter(|index| Sysfs::of(*index).connected());
    Ok(connected.map(Device::open).filter(|device| device.backend().starts_with(backend)).collect())
}

/// The devices the kernel knows, and whether each has a configuration; of the device `index` only, if given. Says nothing
/// about the health of the sockets.
pub fn status(index: Option<u32>) -> Result<Vec<(u32, bool)>, Error> {
    let attributes_sent = index.map(|index| Attributes::default().u32(ATTR_INDEX, index)).unwrap_or_default();
    let answer = call(Command::Status, &attributes_sent)?;
    let list = attribute(&answer, ATTR_DEVICE_LIST).unwrap_or_default();
    let items = attributes(list).filter(|(kind, _)| *kind == DEVICE_ITEM);
    let device = |(_, item)| {
        let connected = attribute(item, DEVICE_CONNECTED)?.first()?;
        Some((number(attribute(item, DEVICE_INDEX)?)?, *connected != 0))
    };
    Ok(items.filter_map(device).collect())
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A network block device of the kernel, by its number. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Device {
    index: u32,
    path: PathBuf,
    backend: String,
    sysfs: Sysfs,
}

impl Device {
    /// The device `index`, which need not be connected, nor exist.
    pub fn open(index: u32) -> Self {
        let sysfs = Sysfs::of(index);
        let backend = sysfs.backend().unwrap_or_default();
        Self { index, path: PathBuf::from(format!("/dev/nbd{index}")), backend, sysfs }
    }

    /// Its number.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Its node in `/dev`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it was connected with, as it was when this was opened; empty if unknown.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Whether the kernel has a configuration for it: it is connected, or somebody still has it open.
    pub fn connected(&self) -> bool {
        self.sysfs.connected()
    }

    /// Its size in bytes; 0 if it is not connected.
    pub fn size(&self) -> u64 {
        self.sysfs.size()
    }

    /// How many requests are under way.
    pub fn inflight(&self) -> u64 {
        self.sysfs.inflight()
    }

    /// How long a reply may take before the kernel gives the socket up; `None` where it does not say (before Linux 5.0).
    pub fn request_timeout(&self) -> Option<Duration> {
        self.sysfs.request_timeout()
    }

    /// The block devices on top of it.
    pub fn holders(&self) -> Vec<String> {
        self.sysfs.holders()
    }

    /// Gives the device new sockets for its dead ones, if any; requests that waited go on. Everything but `index`, `size`
    /// and the queue's settings is taken from `connect`; its backend must be the device's.
    ///
    /// A timer of the kernel's that stays shorter than `connect` asks for is an error, though the sockets are in use then.
    ///
    /// The kernel replaces dead sockets only, and says nothing when there are fewer of them than `sockets`: a socket too
    /// many is closed, which ends its server. So the old ends must have been closed before.
    pub fn reconnect(&self, connect: &Connect, sockets: &[impl AsFd]) -> Result<(), Error> {
        let attributes = connect.attributes(Some(self.index), sockets);
        call(Command::Reconfigure, &attributes).map_err(|error| error.of(self.index))?;
        self.check_timer(connect.request_timeout)
    }

    /// Disconnects the device whether it is in use or not: whoever uses it gets errors. The number is free again when
    /// nobody has it open any more. A device that is not connected is no error.
    pub fn disconnect(&self) -> Result<(), Error> {
        if !self.connected() {
            return Ok(());
        }
        call(Command::Disconnect, &Attributes::default().u32(ATTR_INDEX, self.index))
            .map(drop)
            .map_err(|error| error.of(self.index))
    }

    /// Disconnects the device unless it is in use (mounted, under another device, or opened exclusively), and waits until
    /// its number is free and no request of it is left. A device that is not connected is no error.
    pub fn disconnect_unused(&self) -> Result<(), Error> {
        if !self.connected() {
            return Ok(());
        }
        if let Some(holder) = self.holders().first() {
            return Err(Error::new(ErrorKind::Busy, format!("/dev/nbd{} is in use by {holder}", self.index)));
        }
        // Who holds the device exclusively is alone with it until it is gone.
        let exclusive = match open(&self.path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty())
        {
            Ok(file) => Some(file),
            Err(Errno::BUSY) => {
                return Err(Error::new(ErrorKind::Busy, format!("/dev/nbd{} is in use", self.index)));
            }
            // Without a node nobody can have it open.
            Err(Errno::NOENT | Errno::NXIO) => None,
            Err(error) => return Err(Error::system("cannot open the device", &error.into()).of(self.index)),
        };
        self.disconnect()?;
        drop(exclusive);
        self.wait_for("the kernel does not let go of it", || !self.connected() && self.inflight() == 0)
    }

    /// An error if something of the device's previous life is there still: what stands on it would see another disk.
    fn left_by_nobody(&self) -> Result<(), Error> {
        if let Some(holder) = self.holders().first() {
            return Err(Error::new(ErrorKind::Busy, format!("/dev/nbd{} is in use by {holder}", self.index)));
        }
        let inflight = self.inflight();
        if inflight > 0 && !self.connected() {
            let context = format!("/dev/nbd{} has {inflight} requests of another time under way", self.index);
            return Err(Error::new(ErrorKind::Busy, context));
        }
        Ok(())
    }

    /// An error if the kernel's timer is shorter than what was asked for: it would give sockets up that are in order.
    fn check_timer(&self, asked: Duration) -> Result<(), Error> {
        match self.request_timeout() {
            Some(timer) if timer < asked => {
                let context = format!(
                    "/dev/nbd{}: the kernel waits {} s for a reply, and {} s were asked for",
                    self.index,
                    timer.as_secs(),
                    asked.as_secs()
                );
                Err(Error::new(ErrorKind::Other, context))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the device can be used, and sets its queue up.
    fn set_up(&self, connect: &Connect, size: u64) -> Result<(), Error> {
        self.wait_for("the kernel does not show it", || self.size() == size && self.path.exists())?;
        self.left_by_nobody()?;
        self.check_timer(connect.request_timeout)?;
        self.sysfs.set_queue("max_sectors_kb", connect.max_sectors_kb)?;
        self.sysfs.set_queue("read_ahead_kb", connect.read_ahead_kb)
    }

    fn wait_for(&self, failure: &str, done: impl Fn() -> bool) -> Result<(), Error> {
        let end = Instant::now() + SETTLE;
        while !done() {
            if Instant::now() > end {
                let context = format!("/dev/nbd{}: {failure} ({} s)", self.index, SETTLE.as_secs());
                return Err(Error::new(ErrorKind::Other, context));
            }
            sleep(POLL);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
