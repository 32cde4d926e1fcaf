//! Block devices of the simulated world.

use super::ports::{DM, Port};
use super::{CHUNK, Mutation, Sim, node};
use crate::dm::Target;
use crate::host::{Block, Blocks};
use std::cell::RefCell;
use std::io;
use std::path::Path;
use std::rc::Rc;

struct SimBlock {
    sim: Rc<RefCell<Sim>>,
    minor: u32,
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Blocks for Port {
    fn open(&mut self, device: &Path, _: bool) -> io::Result<Box<dyn Block>> {
        match node(device) {
            Some((DM, minor)) => Ok(Box::new(SimBlock { sim: Rc::clone(&self.0), minor })),
            _ => Err(error(libc::ENXIO)),
        }
    }
}

/// The first byte of each chunk that is touched, and the chunks themselves: a chunk has one byte all over.
fn chunks(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize)> {
    let end = offset + len as u64;
    (offset / CHUNK..end.div_ceil(CHUNK)).map(move |chunk| {
        let from = (chunk * CHUNK).max(offset);
        (chunk, (from - offset) as usize)
    })
}

impl Block for SimBlock {
    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut sim = self.sim.borrow_mut();
        if sim.dead {
            return Err(error(libc::EIO));
        }
        let device = sim.device_of_minor(self.minor).cloned().ok_or_else(|| error(libc::ENXIO))?;
        if device.suspended {
            sim.violations.push("a read of a suspended device waits for ever".into());
        }
        let mut bytes = vec![0; len];
        for (chunk, at) in chunks(offset, len) {
            let byte = match &device.lv {
                Some(lv) => sim.volume(lv).map(|lv| lv.bytes.get(&chunk).copied().unwrap_or_default()),
                None => sim.read(&device, chunk),
            };
            let end = len.min(at + CHUNK as usize);
            bytes[at..end].fill(byte.ok_or_else(|| error(libc::EIO))?);
        }
        Ok(bytes)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut sim = self.sim.borrow_mut();
        for (chunk, at) in chunks(offset, bytes.len()) {
            let byte = bytes[at];
            // A loss of power, or a kill, may come after any part.
            sim.effect(|sim| self.write_chunk(sim, chunk, byte)).ok_or_else(|| error(libc::EIO))??;
        }
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut sim = self.sim.borrow_mut();
        let device = sim.device_of_minor(self.minor).cloned().ok_or_else(|| error(libc::ENXIO))?;
        let lv = device.lv.ok_or_else(|| error(libc::EIO))?;
        let chunks: Vec<u64> = (offset / CHUNK..(offset + len) / CHUNK).collect();
        // A loss of power, or a kill, may come in the middle.
        for half in chunks.chunks(chunks.len().div_ceil(2).max(1)) {
            sim.effect(|sim| {
                for &chunk in half {
                    let volume = sim.volume_mut(&lv).ok_or_else(|| error(libc::ENXIO))?;
                    let old = volume.bytes.insert(chunk, 0).unwrap_or_default();
                    sim.unsynced_zeros.push((lv.clone(), chunk, old));
                }
                Ok::<_, io::Error>(())
            })
            .ok_or_else(|| error(libc::EIO))??;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut sim = self.sim.borrow_mut();
        if sim.mutation == Mutation::LostSync {
            return Ok(());
        }
        let clear = |sim: &mut Sim| {
            sim.unsynced.clear();
            sim.unsynced_zeros.clear();
        };
        sim.effect(clear).ok_or_else(|| error(libc::EIO))
    }
}

impl SimBlock {
    fn write_chunk(&self, sim: &mut Sim, chunk: u64, byte: u8) -> io::Result<()> {
        let device = sim.device_of_minor(self.minor).cloned().ok_or_else(|| error(libc::ENXIO))?;
        if let Some(lv) = &device.lv {
            let volumes = sim.group.iter_mut().flat_map(|group| &mut group.2);
            for volume in volumes.filter(|it| it.name == *lv) {
                volume.bytes.insert(chunk, byte);
            }
            return Ok(());
        }
        let Some(Target::Thin { id, .. }) = device.live.as_ref().and_then(|(table, _)| table.only()) else {
            return Err(error(libc::EIO));
        };
        let others = |other: &&super::SimDevice| {
            let thin = other.live.as_ref().and_then(|(table, _)| table.only());
            other.minor != self.minor
                && matches!(thin, Some(Target::Thin { id: same, .. }) if same == id)
                && !other.uuid.ends_with("-probe")
        };
        if sim.devices.values().filter(others).any(|other| !other.suspended) {
            sim.violations.push(format!("device {id} is written while a guest writes"));
        }
        if sim.thins.get(id).is_some_and(|thin| thin.contains_key(&chunk)) {
            sim.violations.push(format!("chunk {chunk} of device {id} is written over"));
        }
        sim.thins.get_mut(id).ok_or_else(|| error(libc::ENXIO))?.insert(chunk, byte);
        sim.unsynced.insert((*id, chunk));
        Ok(())
    }
}
