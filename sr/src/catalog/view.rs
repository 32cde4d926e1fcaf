//! The area of a device that is only looked at.
//!
//! redb writes even when it only reads: that the database is open, what recovery after a crash finds, and that it is
//! closed. On a device each of these waits for a flush, which is most of what a look at the records would cost. Here
//! they stay in memory, and go with it: the device is not written, and the next one who looks finds what this one did.

use super::area::Area;
use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: u64 = 4096;

#[derive(Debug)]
pub(super) struct View {
    area: Area,
    written: Mutex<Written>,
}

/// What redb believes to have written.
#[derive(Debug)]
struct Written {
    len: u64,
    /// Pages by offset.
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl View {
    pub(super) fn new(area: Area) -> io::Result<Self> {
        let len = area.len()?;
        Ok(Self { area, written: Mutex::new(Written { len, pages: BTreeMap::new() }) })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the device; zeros beyond what it holds.
    fn read_device(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = self.area.len()?.saturating_sub(offset);
        let there = usize::try_from(there).unwrap_or(usize::MAX).min(out.len());
        out[there..].fill(0);
        match there {
            0 => Ok(()),
            there => self.area.read(offset, &mut out[..there]),
        }
    }
}

/// The pages that `len` bytes from `offset` lie in, each with where it begins.
fn pages(offset: u64, len: usize) -> impl Iterator<Item = u64> {
    let first = offset / PAGE * PAGE;
    (first..offset + len as u64).step_by(PAGE as usize)
}

/// The part of `offset..offset + len` in the page at `page`: where it begins in the buffer, in the page, and its length.
fn part(page: u64, offset: u64, len: usize) -> (usize, usize, usize) {
    let start = page.max(offset);
    let end = (page + PAGE).min(offset + len as u64);
    ((start - offset) as usize, (start - page) as usize, (end - start) as usize)
}

fn check(offset: u64, len: usize, end: u64) -> io::Result<()> {
    match offset.checked_add(len as u64) {
        Some(last) if last <= end => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "access beyond the end of the records")),
    }
}

impl StorageBackend for View {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        check(offset, out.len(), written.len)?;
        self.read_device(offset, out)?;
        let len = out.len();
        for page in pages(offset, len) {
            if let Some(bytes) = written.pages.get(&page) {
                let (at, within, len) = part(page, offset, len);
                out[at..at + len].copy_from_slice(&bytes[within..within + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut written = self.written();
        // What is cut off reads as zeros if it comes back; redb only ever grows what it looks at.
        written.pages.retain(|&page, _| page < len);
        written.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        check(offset, data.len(), written.len)?;
        for page in pages(offset, data.len()) {
            let (at, within, len) = part(page, offset, data.len());
            let bytes = match written.pages.get_mut(&page) {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; PAGE as usize].into_boxed_slice();
                    self.read_device(page, &mut bytes)?;
                    written.pages.entry(page).or_insert(bytes)
                }
            };
            bytes[within..within + len].copy_from_slice(&data[at..at + len]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    /// Whatever is written reads back as from a file that was written, and the file is as it was.
    #[test]
    fn what_is_written_is_seen_and_the_device_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("device");
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        File::create(&path).unwrap().set_len(4 << 20).unwrap();
        Area::clear(&open()).unwrap();
        let area = Area::open(open(), 4 << 20).unwrap();
        area.set_len(100_000).unwrap();
        let mut model: Vec<u8> = (0..100_000u32).map(|at| (at % 251) as u8 + 1).collect();
        area.write(0, &model).unwrap();
        let before = std::fs::read(&path).unwrap();
        let view = View::new(area).unwrap();
        view.set_len(120_000).unwrap();
        model.resize(120_000, 0);
        let mut seed = 12345u64;
        for round in 0..500u64 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (seed >> 33) as usize % 110_000;
            let len = (seed >> 20) as usize % 9_000 + 1;
            view.write(at as u64, &vec![round as u8; len]).unwrap();
            model[at..at + len].fill(round as u8);
            let mut read = vec![0; 9_999];
            view.read(at as u64 / 2, &mut read).unwrap();
            assert_eq!(read, model[at / 2..at / 2 + 9_999]);
        }
        view.sync_data().unwrap();
        assert!(view.write(119_999, &[1, 2]).is_err());
        assert!(view.read(u64::MAX, &mut [0]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
