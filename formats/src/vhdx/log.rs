//! The log (MS-VHDX 2.3): metadata writes that were under way when the file was last used.
//!
//! A file whose log is not empty cannot be read without it, and cannot be repaired by a reader. So the log is
//! replayed in memory: its writes are laid over whatever metadata is read from the file.

use super::crc32c;
use crate::fields::{Fields, index, length};
use crate::known::Table;
use crate::{FormatError, Result};

/// Alignment and unit of everything in the log.
const SECTOR: u64 = 4096;

/// One write of the log.
#[derive(Clone, Copy, Debug)]
enum Write {
    /// One sector: where its descriptor and its data sector are in the log.
    Data { at: u64, descriptor: u64, data: u64 },
    /// Zeros.
    Zero { at: u64, len: u64 },
}

/// The writes of a log, in order.
#[derive(Debug, Default)]
pub(crate) struct Log {
    bytes: Table,
    writes: Vec<Write>,
}

/// A valid entry.
#[derive(Clone, Copy, Debug)]
struct Entry {
    at: u64,
    len: u64,
    tail: u64,
    sequence: u64,
    descriptors: u64,
    flushed: u64,
}

impl Log {
    /// Finds the active sequence among the entries that carry `guid`, and its writes.
    pub(crate) fn read(table: Table, guid: [u8; 16], file_len: u64) -> Result<Log> {
        let log = Reader { bytes: table.bytes(), guid };
        let Some(sequence) = log.active()? else {
            return Ok(Log::default());
        };
        let head = sequence.last().copied();
        if let Some(head) = head.filter(|head| head.flushed > file_len) {
            let what = "vhdx file that its log describes";
            return Err(FormatError::Truncated { what, at: 0, len: head.flushed, file_len });
        }
        let mut writes = Vec::new();
        for entry in &sequence {
            log.writes(entry, &mut writes)?;
        }
        Ok(Log { bytes: table, writes })
    }

    /// Whether nothing has to be replayed.
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Whether a write touches `at..at + len` of the file.
    pub(crate) fn touches(&self, at: u64, len: u64) -> bool {
        self.writes.iter().any(|write| {
            let (start, size) = write.range();
            start < at.saturating_add(len) && at < start.saturating_add(size)
        })
    }

    /// Lays the writes over `bytes`, which were read at `at`.
    pub(crate) fn replay(&self, at: u64, bytes: &mut [u8]) {
        for write in &self.writes {
            let (start, len) = write.range();
            let end = at.saturating_add(length(bytes.len()));
            let (from, to) = (start.max(at), start.saturating_add(len).min(end));
            if from >= to {
                continue;
            }
            let part = bytes.get_mut(index(from.saturating_sub(at))..index(to.saturating_sub(at)));
            let Some(part) = part else { continue };
            match *write {
                Write::Zero { .. } => part.fill(0),
                Write::Data { at: start, descriptor, data } => {
                    let sector = self.sector(descriptor, data);
                    let skip = index(from.saturating_sub(start));
                    part.iter_mut().zip(sector.iter().skip(skip)).for_each(|(byte, new)| *byte = *new);
                }
            }
        }
    }

    /// The content of a data descriptor's sector: its first 8 and last 4 bytes are in the descriptor, because
    /// signature and sequence number stand in their place.
    fn sector(&self, descriptor: u64, data: u64) -> [u8; 4096] {
        let log = self.bytes.bytes();
        let (descriptor, data) = (index(descriptor), index(data));
        let mut sector = [0; 4096];
        let parts = [
            (0, descriptor.saturating_add(8), 8),
            (8, data.saturating_add(8), 4084),
            (4092, descriptor.saturating_add(4), 4),
        ];
        for (to, from, len) in parts {
            let source = log.get(from..from.saturating_add(len)).unwrap_or_default();
            sector.iter_mut().skip(to).zip(source).for_each(|(byte, new)| *byte = *new);
        }
        sector
    }
}

impl Write {
    fn range(&self) -> (u64, u64) {
        match *self {
            Write::Data { at, .. } => (at, SECTOR),
            Write::Zero { at, len } => (at, len),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    guid: [u8; 16],
}

impl Reader<'_> {
    fn len(&self) -> u64 {
        length(self.bytes.len())
    }

    /// The entry at `at`, if a valid one begins there. Entries may wrap around the end of the log.
    fn entry(&self, at: u64) -> Option<Entry> {
        let header = self.bytes.get(index(at)..)?.get(..64)?;
        let fields = Fields::new(header, "the vhdx log entry");
        let len = u64::from(fields.le32(8).ok()?);
        let ours = header.starts_with(b"loge") && fields.array(32).ok()? == self.guid;
        if !ours || len == 0 || !len.is_multiple_of(SECTOR) || len > self.len() {
            return None;
        }
        let tail = u64::from(fields.le32(12).ok()?);
        if !tail.is_multiple_of(SECTOR) || tail >= self.len() || fields.le64(16).ok()? == 0 {
            return None;
        }
        let end = at.checked_add(len)?;
        let whole = match self.bytes.get(index(at)..index(end)) {
            Some(whole) => crc32c::of_structure(whole),
            None => {
                let mut whole = self.bytes.get(index(at)..)?.to_vec();
                whole.extend_from_slice(self.bytes.get(..index(end.checked_sub(self.len())?))?);
                crc32c::of_structure(&whole)
            }
        };
        (whole == fields.le32(4).ok()?).then_some(Entry {
            at,
            len,
            tail,
            sequence: fields.le64(16).ok()?,
            descriptors: fields.le32(24).ok()?.into(),
            flushed: fields.le64(48).ok()?,
        })
    }

    /// The active sequence (MS-VHDX 2.3.2): of all runs of entries with consecutive numbers whose last entry names a
    /// first one inside the run, that with the highest number; without the entries before that first one.
    fn active(&self) -> Result<Option<Vec<Entry>>> {
        let mut best: Option<Vec<Entry>> = None;
        let mut broken = false;
        let mut at = 0;
        while at < self.len() {
            let run = self.run(at);
            let Some(head) = run.last().copied() else {
                broken |= self.claims(at);
                at = at.saturating_add(SECTOR);
                continue;
            };
            if let Some(first) = run.iter().position(|entry| entry.at == head.tail) {
                let newest = best.as_ref().and_then(|best| best.last()).map_or(0, |head| head.sequence);
                if head.sequence > newest {
                    best = Some(run.get(first..).unwrap_or_default().to_vec());
                }
            } else {
                broken = true;
            }
            // Going on behind the run's first part keeps a run that wraps from being followed more than once.
            let inside: u64 = run.iter().filter(|entry| entry.at >= at).map(|entry| entry.len).sum();
            at = at.saturating_add(inside.max(SECTOR));
        }
        if best.is_none() && broken {
            let rule = "its entries form no complete sequence: the image's metadata cannot be made whole";
            return Err(FormatError::Refused { what: "the vhdx log", rule });
        }
        Ok(best)
    }

    /// The valid entries from `at` on whose numbers are consecutive.
    fn run(&self, at: u64) -> Vec<Entry> {
        let mut run: Vec<Entry> = Vec::new();
        let mut next = at;
        let mut total = 0u64;
        while let Some(entry) = self.entry(next) {
            total = total.saturating_add(entry.len);
            let follows = run.last().is_none_or(|last| last.sequence.checked_add(1) == Some(entry.sequence));
            if !follows || total > self.len() {
                break;
            }
            run.push(entry);
            next = entry.at.saturating_add(entry.len);
            next = next.checked_sub(self.len()).unwrap_or(next);
        }
        run
    }

    /// Whether something at `at` calls itself an entry of this log.
    fn claims(&self, at: u64) -> bool {
        let header = self.bytes.get(index(at)..).and_then(|rest| rest.get(..64)).unwrap_or_default();
        header.starts_with(b"loge") && header.get(32..48) == Some(&self.guid[..])
    }

    /// Adds the writes of an entry (MS-VHDX 2.3.1): descriptors of 32 bytes behind the header of 64, and behind
    /// them, from the next sector on, one sector for each data descriptor.
    fn writes(&self, entry: &Entry, writes: &mut Vec<Write>) -> Result<()> {
        let bad = |rule| FormatError::Refused { what: "the vhdx log", rule };
        let descriptors = entry.descriptors.saturating_mul(32).saturating_add(64);
        let mut data = descriptors.next_multiple_of(SECTOR);
        if data > entry.len {
            return Err(bad("an entry has more descriptors than room for them"));
        }
        let wrapped = |at: u64| {
            let at = entry.at.saturating_add(at);
            at.checked_sub(self.len()).unwrap_or(at)
        };
        for number in 0..entry.descriptors {
            let at = wrapped(number.saturating_mul(32).saturating_add(64));
            let bytes = self.bytes.get(index(at)..).and_then(|rest| rest.get(..32)).unwrap_or_default();
            let fields = Fields::new(bytes, "the vhdx log descriptor");
            if fields.le64(24)? != entry.sequence {
                return Err(bad("a descriptor belongs to another entry"));
            }
            let target = fields.le64(16)?;
            let write = match fields.array(0)? {
                [b'z', b'e', b'r', b'o'] => Write::Zero { at: target, len: fields.le64(8)? },
                [b'd', b'e', b's', b'c'] if data < entry.len => {
                    let sector = wrapped(data);
                    data = data.saturating_add(SECTOR);
                    self.check_data(sector, entry.sequence)?;
                    Write::Data { at: target, descriptor: at, data: sector }
                }
                _ => return Err(bad("a descriptor is of no known kind, or its data is missing")),
            };
            if !target.is_multiple_of(SECTOR) || !write.range().1.is_multiple_of(SECTOR) {
                return Err(bad("a write is not aligned to 4 KiB"));
            }
            writes.push(write);
        }
        Ok(())
    }

    fn check_data(&self, at: u64, sequence: u64) -> Result<()> {
        let sector = self.bytes.get(index(at)..).and_then(|rest| rest.get(..4096)).unwrap_or_default();
        let fields = Fields::new(sector, "the vhdx log data sector");
        let number = u64::from(fields.le32(4)?) << 32 | u64::from(fields.le32(4092)?);
        if sector.starts_with(b"data") && number == sequence {
            return Ok(());
        }
        Err(FormatError::Refused { what: "the vhdx log", rule: "a data sector belongs to another entry" })
    }
}
