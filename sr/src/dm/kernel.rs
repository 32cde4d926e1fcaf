//! Device-mapper by its ioctl interface (Linux, include/uapi/linux/dm-ioctl.h, version 4).
//!
//! Why not `dmsetup`: a request here costs microseconds instead of a process, an error is a number instead of a
//! sentence, and nothing waits for udev. The kernel makes `/dev/dm-N` itself; udev, where it runs, adds the names
//! under `/dev/mapper`, and is told by flags to keep its hands and those of blkid, LVM and multipath off our devices,
//! for what is in them belongs to guests.

use super::{Device, DeviceNumber, Dm, DmError, DmResult, Guard, PoolMessage, Segment, Table, Target, guard};
use crate::error::{Error, Result};
use crate::names::DmName;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const CONTROL: &str = "/dev/mapper/control";

/// `struct dm_ioctl`, as offsets.
mod header {
    pub(super) const LEN: usize = 312;
    pub(super) const DATA_SIZE: usize = 12;
    pub(super) const DATA_START: usize = 16;
    pub(super) const TARGET_COUNT: usize = 20;
    pub(super) const OPEN_COUNT: usize = 24;
    pub(super) const FLAGS: usize = 28;
    pub(super) const EVENT_NR: usize = 32;
    pub(super) const DEV: usize = 40;
    pub(super) const NAME: usize = 48;
    pub(super) const NAME_LEN: usize = 128;
    pub(super) const UUID: usize = 176;
    pub(super) const UUID_LEN: usize = 129;
}

/// `struct dm_target_spec` before its parameters.
const SPEC_LEN: usize = 40;

const READONLY: u32 = 1 << 0;
const SUSPEND: u32 = 1 << 1;
const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE_PRESENT: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
const SKIP_LOCKFS: u32 = 1 << 10;

/// What udev is told with every event: no subsystem, disk or other rules, and that this is the primary source
/// (libdevmapper.h, `DM_UDEV_*`). The flags are the upper half of the event number; the lower half would name a
/// semaphore to wait on, and we do not wait.
const UDEV_FLAGS: u32 = (0x0002 | 0x0004 | 0x0008 | 0x0040) << 16;

#[derive(Clone, Copy)]
enum Command {
    ListDevices = 2,
    DevCreate = 3,
    DevRemove = 4,
    DevSuspend = 6,
    TableLoad = 9,
    TableStatus = 12,
    TargetMessage = 14,
}

impl Command {
    /// `_IOWR(0xfd, command, struct dm_ioctl)`
    fn code(self) -> libc::Ioctl {
        ((3 << 30) | ((header::LEN as u64) << 16) | (0xfd << 8) | self as u64) as libc::Ioctl
    }
}

/// The kernel's device-mapper.
#[derive(Debug)]
pub struct KernelDm {
    control: File,
}

impl KernelDm {
    /// Opens the control node.
    ///
    /// # Errors
    /// The kernel has no device-mapper, or the caller is not root.
    pub fn open() -> Result<Self> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL);
        control.map(|control| Self { control }).map_err(|e| {
            let way_out = match e.kind() {
                io::ErrorKind::PermissionDenied => "smctl needs root",
                _ => "the kernel has no device-mapper (modprobe dm-thin-pool)",
            };
            Error::failed(format!("cannot open {CONTROL}: {way_out}")).because(e)
        })
    }

    /// Sends a request, with a larger buffer for as long as the kernel says that its answer does not fit.
    fn send(&self, command: Command, request: &Request) -> Result<Reply, i32> {
        let mut room = request.payload.len() + 16 * 1024;
        loop {
            let mut buffer = request.encode(header::LEN + room);
            // SAFETY: `buffer` begins with a `struct dm_ioctl` whose `data_size` is the buffer's length, and the
            // kernel reads and writes within `data_size`. The buffer lives until the call returns.
            let result =
                unsafe { libc::ioctl(self.control.as_raw_fd(), command.code(), buffer.as_mut_ptr()) };
            if result != 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO));
            }
            let reply = Reply { buffer };
            if reply.word(header::FLAGS) & BUFFER_FULL == 0 {
                return Ok(reply);
            }
            room *= 4;
        }
    }

    fn request(&self, command: Command, words: &str, request: &Request) -> DmResult<Reply> {
        self.send(command, request)
            .map_err(|errno| DmError { request: format!("{words} {}", request.name), errno })
    }

    /// The reply to a table request, `None` if there is no such device.
    fn table(&self, name: &str, flags: u32) -> DmResult<Option<Reply>> {
        match self.request(Command::TableStatus, "table", &Request::new(name, flags)) {
            Ok(reply) => Ok(Some(reply)),
            Err(e) if e.errno == libc::ENXIO => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Dm for KernelDm {
    fn device(&mut self, name: &str) -> DmResult<Option<Device>> {
        let Some(reply) = self.table(name, STATUS_TABLE)? else {
            return Ok(None);
        };
        let flags = reply.word(header::FLAGS);
        let live = flags & ACTIVE_PRESENT != 0;
        Ok(Some(Device {
            number: reply.number(header::DEV),
            uuid: reply.text(header::UUID, header::UUID_LEN),
            open_count: reply.word(header::OPEN_COUNT),
            suspended: flags & SUSPEND != 0,
            read_only: flags & READONLY != 0,
            table: live.then(|| {
                let segment = |(sectors, kind, parameters): (u64, String, String)| Segment {
                    sectors,
                    target: Target::parse(&kind, &parameters),
                };
                Table(reply.targets().into_iter().map(segment).collect())
            }),
        }))
    }

    fn names(&mut self) -> DmResult<Vec<String>> {
        let reply = self.request(Command::ListDevices, "list", &Request::new("", 0))?;
        let mut names = Vec::new();
        // struct dm_name_list: device number, offset of the next entry from this one, name.
        let mut at = reply.data_start();
        if reply.buffer.len() < at + 12 || reply.number(at) == (DeviceNumber { major: 0, minor: 0 }) {
            return Ok(names);
        }
        while at + 12 <= reply.buffer.len() {
            names.push(reply.text(at + 12, header::NAME_LEN));
            match reply.word(at + 8) as usize {
                0 => break,
                next => at += next,
            }
        }
        Ok(names)
    }

    fn status(&mut self, name: &str) -> DmResult<String> {
        let reply = self.request(Command::TableStatus, "status", &Request::new(name, 0))?;
        let first = reply.targets().into_iter().next();
        Ok(first.map(|(_, _, status)| status).unwrap_or_default())
    }

    fn create(&mut self, device: &DmName) -> DmResult<()> {
        let mut request = Request::new(&device.name, 0);
        request.uuid.clone_from(&device.uuid);
        self.request(Command::DevCreate, "create", &request).map(drop)
    }

    fn load(&mut self, name: &str, table: &Table, read_only: bool) -> DmResult<()> {
        let mut request = Request::new(name, if read_only { READONLY } else { 0 });
        let mut start: u64 = 0;
        for segment in &table.0 {
            let (kind, parameters) = segment.target.words();
            let len = (SPEC_LEN + parameters.len() + 1).next_multiple_of(8);
            let mut spec = vec![0; len];
            spec[..8].copy_from_slice(&start.to_ne_bytes());
            spec[8..16].copy_from_slice(&segment.sectors.to_ne_bytes());
            spec[20..24].copy_from_slice(&(len as u32).to_ne_bytes());
            spec[24..24 + kind.len()].copy_from_slice(kind.as_bytes());
            spec[SPEC_LEN..SPEC_LEN + parameters.len()].copy_from_slice(parameters.as_bytes());
            request.payload.extend_from_slice(&spec);
            request.target_count += 1;
            start += segment.sectors;
        }
        self.request(Command::TableLoad, &format!("load '{table}' into"), &request).map(drop)
    }

    fn suspend(&mut self, name: &str) -> DmResult<()> {
        self.request(Command::DevSuspend, "suspend", &Request::new(name, SUSPEND)).map(drop)
    }

    fn hold(&mut self, name: &str) -> DmResult<()> {
        self.request(Command::DevSuspend, "hold", &Request::new(name, SUSPEND | SKIP_LOCKFS)).map(drop)
    }

    fn guard(&mut self, name: &str) -> DmResult<Box<dyn Guard>> {
        let buffer = Request::resume(name).encode(header::LEN);
        guard::fork(name, self.control.as_raw_fd(), Command::DevSuspend.code(), buffer)
    }

    fn resume(&mut self, name: &str) -> DmResult<()> {
        self.request(Command::DevSuspend, "resume", &Request::resume(name)).map(drop)
    }

    fn remove(&mut self, name: &str) -> DmResult<()> {
        let mut request = Request::new(name, 0);
        request.event_nr = UDEV_FLAGS;
        self.request(Command::DevRemove, "remove", &request).map(drop)
    }

    fn message(&mut self, pool: &str, message: PoolMessage) -> DmResult<()> {
        let words = message.to_string();
        let mut request = Request::new(pool, 0);
        // struct dm_target_msg: the sector whose target is meant, then the words.
        request.payload.extend_from_slice(&0u64.to_ne_bytes());
        request.payload.extend_from_slice(words.as_bytes());
        request.payload.push(0);
        self.request(Command::TargetMessage, &format!("message '{words}' to"), &request).map(drop)
    }
}

struct Request {
    name: String,
    uuid: String,
    flags: u32,
    event_nr: u32,
    target_count: u32,
    payload: Vec<u8>,
}

impl Request {
    fn new(name: &str, flags: u32) -> Self {
        Self {
            name: name.into(),
            uuid: String::new(),
            flags,
            event_nr: 0,
            target_count: 0,
            payload: Vec::new(),
        }
    }

    fn resume(name: &str) -> Self {
        Self { event_nr: UDEV_FLAGS, ..Self::new(name, 0) }
    }

    fn encode(&self, len: usize) -> Vec<u8> {
        let mut buffer = vec![0; len];
        let mut word = |at: usize, value: u32| buffer[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        word(0, 4);
        word(header::DATA_SIZE, len as u32);
        word(header::DATA_START, header::LEN as u32);
        word(header::TARGET_COUNT, self.target_count);
        word(header::FLAGS, self.flags);
        word(header::EVENT_NR, self.event_nr);
        let mut text = |at: usize, room: usize, text: &str| {
            // Both end with a zero byte. Names fit by construction (see `names`).
            let len = text.len().min(room - 1);
            buffer[at..at + len].copy_from_slice(&text.as_bytes()[..len]);
        };
        text(header::NAME, header::NAME_LEN, &self.name);
        text(header::UUID, header::UUID_LEN, &self.uuid);
        buffer[header::LEN..header::LEN + self.payload.len()].copy_from_slice(&self.payload);
        buffer
    }
}

struct Reply {
    buffer: Vec<u8>,
}

impl Reply {
    fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.buffer[at..at + 4]);
        u32::from_ne_bytes(bytes)
    }

    fn long(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.buffer[at..at + 8]);
        u64::from_ne_bytes(bytes)
    }

    /// A device number in the kernel's `huge_encode_dev` form.
    fn number(&self, at: usize) -> DeviceNumber {
        let dev = self.long(at);
        DeviceNumber {
            major: ((dev >> 8) & 0xfff) as u32,
            minor: ((dev & 0xff) | ((dev >> 12) & 0xf_ff00)) as u32,
        }
    }

    fn text(&self, at: usize, room: usize) -> String {
        let end = (at + room).min(self.buffer.len());
        let bytes = self.buffer.get(at..end).unwrap_or_default();
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }

    fn data_start(&self) -> usize {
        self.word(header::DATA_START) as usize
    }

    /// Length in sectors, kind and parameters (or status) of each target.
    fn targets(&self) -> Vec<(u64, String, String)> {
        let start = self.data_start();
        let mut at = start;
        let mut targets = Vec::new();
        for _ in 0..self.word(header::TARGET_COUNT) {
            if at + SPEC_LEN > self.buffer.len() {
                break;
            }
            let parameters = self.text(at + SPEC_LEN, self.buffer.len());
            targets.push((self.long(at + 8), self.text(at + 24, 16), parameters));
            // In a reply, the next target's offset counts from the first.
            at = start + self.word(at + 20) as usize;
        }
        targets
    }
}
