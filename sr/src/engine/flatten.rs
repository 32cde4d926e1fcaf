//! Copying what a thin VDI still reads from its template into the thin device, while a guest reads and writes it.
//!
//! A block may be written only while it is not mapped, and nothing in the kernel does that in one step. So for a moment
//! in which the guest's device is suspended, blocks are written through a second device of the same thin id: nothing is
//! under way then, and what the guest had begun to write is mapped. What is to be written is in memory before, so the
//! guest never waits for a template's server, only for the pool to take [`Flattening::window`] bytes.
//!
//! Which blocks are mapped is asked of the kernel by reading: a device of the thin id whose origin gives an error
//! wherever it is read, and one without origin, which reads zeros. Only a block that does both is not mapped; one that
//! gives an error on both is damaged, and the work ends there.

use super::{Session, Slice, World};
use crate::dm::{DeviceNumber, PoolMode, Table, Target};
use crate::error::{Error, Result};
use crate::host::Block;
use crate::names;
use crate::record::Vdi;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How much of a block is read to see whether it is mapped, in bytes.
const PROBE: usize = 4096;

/// The most that is written while a guest waits, in bytes, and how much at first.
const WINDOW_MAX: u64 = 8 << 20;
const WINDOW_FIRST: u64 = 1 << 20;

/// How long a guest is to wait at most.
const STALL: Duration = Duration::from_millis(50);

/// The part of the pool, as a divisor, that is left to guests.
const KEEP: u64 = 20;

/// A flattening under way.
#[derive(Debug)]
pub(crate) struct Flattening {
    /// The thin device.
    id: u32,
    /// The pool's block size, in bytes.
    chunk: u64,
    /// What the template holds, in whole blocks, last first.
    left: Vec<Range<u64>>,
    total: u64,
    done: u64,
    /// How many bytes were copied.
    copied: u64,
    /// How much is written while the guest waits, in bytes.
    window: u64,
    /// Why it stopped where the pool has no room for more.
    shortage: Option<Error>,
}

impl Flattening {
    /// Of the thin device `id` of a VDI of `size` bytes, whose template has something else than zeros in `data`.
    pub(crate) fn new(id: u32, size: u64, chunk: u64, data: &[Range<u64>]) -> Self {
        let mut left: Vec<Range<u64>> = Vec::new();
        for range in data {
            let (start, end) = (range.start / chunk * chunk, range.end.min(size).next_multiple_of(chunk));
            match left.last_mut() {
                Some(last) if last.end >= start => last.end = last.end.max(end),
                _ if start < end => left.push(start..end),
                _ => {}
            }
        }
        let total = left.iter().map(|range| range.end - range.start).sum();
        left.reverse();
        Self { id, chunk, left, total, done: 0, copied: 0, window: WINDOW_FIRST.max(chunk), shortage: None }
    }

    /// The thin device.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Bytes that were gone through, and how many there are.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    /// Bytes that were copied.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    /// Why nothing more was copied although something is left; the next slice tries it again.
    pub(crate) fn take_shortage(&mut self) -> Option<Error> {
        self.shortage.take()
    }

    /// Whether nothing is left.
    pub(crate) fn is_done(&self) -> bool {
        self.left.is_empty()
    }

    /// What comes next: whole blocks, no more than are written at once.
    fn next(&self) -> Option<Range<u64>> {
        let range = self.left.last()?;
        let most = self.window / self.chunk * self.chunk;
        Some(range.start..range.end.min(range.start + most.max(self.chunk)))
    }

    /// Notes that `batch` needs no further look: what is mapped once is the guest's, or is what the template has.
    fn pass(&mut self, batch: &Range<u64>) {
        self.done += batch.end - batch.start;
        if let Some(range) = self.left.last_mut() {
            range.start = batch.end;
            if range.start >= range.end {
                self.left.pop();
            }
        }
    }

    /// Writes less at once if the guest waited too long, and more if it hardly did.
    fn adapt(&mut self, stall: Duration) {
        if stall > STALL {
            self.window = (self.window / 2).max(self.chunk);
        } else if stall < STALL / 3 {
            self.window = (self.window * 2).min(WINDOW_MAX.max(self.chunk));
        }
    }
}

/// The devices of one thin id through which it is looked at and written.
struct Scratch {
    /// Reads zeros where nothing is mapped.
    plain: Box<dyn Block>,
    /// Gives an error where nothing is mapped.
    probe: Box<dyn Block>,
}

/// Blocks to be written: where, and what.
type Blocks = Vec<(u64, Vec<u8>)>;

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(PROBE).all(|piece| piece == &[0; PROBE][..piece.len()])
}

impl Scratch {
    fn is_mapped(&self, offset: u64) -> io::Result<bool> {
        match self.probe.read(offset, PROBE) {
            Ok(_) => Ok(true),
            // What is mapped and cannot be read gives an error here too.
            Err(_) => self.plain.read(offset, PROBE).map(|bytes| !is_zero(&bytes)),
        }
    }

    /// What the template has for the blocks of `batch` that are not mapped, without those that are zeros.
    fn wanted(&self, template: &dyn Block, batch: &Range<u64>, chunk: u64) -> io::Result<Blocks> {
        let mut wanted = Vec::new();
        let mut at = batch.start;
        while at < batch.end {
            if self.is_mapped(at)? {
                at += chunk;
                continue;
            }
            let start = at;
            at += chunk;
            while at < batch.end && !self.is_mapped(at)? {
                at += chunk;
            }
            let bytes = template.read(start, (at - start) as usize)?;
            for (number, block) in bytes.chunks_exact(chunk as usize).enumerate() {
                if !is_zero(block) {
                    wanted.push((start + number as u64 * chunk, block.to_vec()));
                }
            }
        }
        Ok(wanted)
    }

    /// Writes those of the blocks that are not mapped, neighbours together; says how many bytes.
    fn write_unmapped(&self, blocks: &Blocks) -> io::Result<u64> {
        let mut written = 0;
        let mut run: Option<(u64, Vec<u8>)> = None;
        let mut write = |run: Option<(u64, Vec<u8>)>| match run {
            Some((offset, bytes)) => {
                written += bytes.len() as u64;
                self.plain.write(offset, &bytes)
            }
            None => Ok(()),
        };
        for (offset, bytes) in blocks {
            if self.is_mapped(*offset)? {
                continue;
            }
            match &mut run {
                Some((start, run)) if *start + run.len() as u64 == *offset => run.extend_from_slice(bytes),
                _ => write(run.replace((*offset, bytes.clone())))?,
            }
        }
        write(run)?;
        Ok(written)
    }
}

impl World {
    /// Whether a device is left of a flattening of the VDI.
    pub(super) fn scratch(&mut self, sr: Uuid, vdi: Uuid) -> Result<bool> {
        for name in names::scratch_devices(sr, vdi) {
            if self.dm.device(&name.name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes what is left of a flattening of the VDI.
    pub(super) fn remove_scratch(&mut self, sr: Uuid, vdi: Uuid) -> Result<()> {
        // What stands on another goes first.
        for name in names::scratch_devices(sr, vdi) {
            if self.dm.device(&name.name)?.is_some() {
                self.unmap(&name)?;
            }
        }
        Ok(())
    }

    /// Copies until nothing is left, the pool has no room left for it, or as long as the slice lasts. The template is open and padded, the guest's device,
    /// if there is one, goes on. What was copied is durable when this returns.
    pub(crate) fn flatten(
        &mut self,
        session: &Session,
        vdi: &Vdi,
        work: &mut Flattening,
        slice: &Slice<'_>,
    ) -> Result<()> {
        let (pool, _) = self.pool_status(session)?;
        let made = self.make_scratch(session, vdi, pool.number, work.chunk);
        let copied = made.and_then(|()| self.copy_blocks(session, vdi, work, slice));
        // Whatever came of it, nobody else has the thin device afterwards.
        let removed = self.remove_scratch(session.sr.uuid, vdi.uuid);
        copied.and(removed)
    }

    fn make_scratch(&mut self, session: &Session, vdi: &Vdi, pool: DeviceNumber, chunk: u64) -> Result<()> {
        let sr = session.sr.uuid;
        let id = vdi.thin_id().unwrap_or_default();
        let bytes = vdi.virtual_size.next_multiple_of(chunk);
        let nothing = names::nothing_device(sr, vdi.uuid);
        let target = Target::Other { kind: "error".into(), parameters: String::new() };
        self.install(&nothing, None, &Table::single(bytes, target), true)?;
        let nothing = self.dm.device(&nothing.name)?.map(|device| device.number);
        let thin = |origin| Table::single(bytes, Target::Thin { pool, id, origin });
        self.install(&names::probe_device(sr, vdi.uuid), None, &thin(nothing), true)?;
        self.install(&names::flatten_device(sr, vdi.uuid), None, &thin(None), false)?;
        Ok(())
    }

    fn copy_blocks(
        &mut self,
        session: &Session,
        vdi: &Vdi,
        work: &mut Flattening,
        slice: &Slice<'_>,
    ) -> Result<()> {
        let sr = session.sr.uuid;
        let failed = |e: io::Error| Error::failed(format!("cannot flatten VDI '{}'", vdi.name)).because(e);
        let template = vdi.origin.unwrap_or_default();
        let template = self.open_block(&names::origin_device(sr, template).name, false)?;
        let scratch = Scratch {
            plain: self.open_block(&names::flatten_device(sr, vdi.uuid).name, true)?,
            probe: self.open_block(&names::probe_device(sr, vdi.uuid).name, false)?,
        };
        let guest = names::vdi_device(sr, vdi.uuid).name;
        let live = self.dm.device(&guest)?.is_some_and(|device| device.table.is_some());
        // Should this process be killed, the guest goes on.
        let guard = if live { Some(self.dm.guard(&guest)?) } else { None };
        while let Some(batch) = work.next() {
            let blocks = scratch.wanted(template.as_ref(), &batch, work.chunk).map_err(failed)?;
            work.shortage = self.shortage(session, vdi, blocks.len() as u64)?;
            if work.shortage.is_some() {
                break;
            }
            if live && !blocks.is_empty() {
                let held = Instant::now();
                match self.dm.hold(&guest) {
                    // By a signal, which may be the one that asks to stop.
                    Err(e) if e.errno == libc::EINTR && !(slice.stop)() => continue,
                    Err(e) if e.errno == libc::EINTR => break,
                    other => other?,
                }
                let written = scratch.write_unmapped(&blocks);
                self.dm.resume(&guest)?;
                work.adapt(held.elapsed());
                work.copied += written.map_err(failed)?;
            } else {
                work.copied += scratch.write_unmapped(&blocks).map_err(failed)?;
            }
            work.pass(&batch);
            if Instant::now() >= slice.until || (slice.stop)() {
                break;
            }
        }
        drop(guard);
        scratch.plain.sync().map_err(failed)
    }

    /// An error unless the pool has so many blocks to give that enough is left to guests.
    fn shortage(&mut self, session: &Session, vdi: &Vdi, blocks: u64) -> Result<Option<Error>> {
        let (_, status) = self.pool_status(session)?;
        let free = status.data_total.saturating_sub(status.data_used);
        if blocks == 0 || status.mode == PoolMode::ReadWrite && free >= blocks + status.data_total / KEEP {
            return Ok(None);
        }
        Ok(Some(Error::failed(format!(
            "VDI '{}' cannot be flattened further: {free} of the {} blocks of the pool {}/{} are free, and what flattening \
             would take next is left to guests; what was copied stays, and when the pool has grown it goes on",
            vdi.name, status.data_total, session.sr.vg, session.sr.pool_lv
        ))))
    }

    fn open_block(&mut self, name: &str, write: bool) -> Result<Box<dyn Block>> {
        let device = self.dm.device(name)?;
        let device = device.ok_or_else(|| Error::failed(format!("there is no device {name}")))?;
        let node = device.number.dm_node();
        self.blocks.open(&node, write).map_err(|e| {
            Error::failed(format!("cannot open {}, the device {name}", node.display())).because(e)
        })
    }
}
