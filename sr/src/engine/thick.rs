//! Looking at the volumes of preallocated VDIs, and zeroing them.

use super::{Session, World};
use crate::Work;
use crate::error::{Error, ErrorKind, Result};
use crate::names;
use crate::plan::Space;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How much is zeroed in one request at first, at least, and at most, in bytes. A request cannot be interrupted: the most is
/// what a device that is suddenly slow, as when its cache is full, does in a second or so.
const PIECE: u64 = 4 << 20;
const PIECE_MIN: u64 = 1 << 20;
const PIECE_MAX: u64 = 128 << 20;

/// How long a request may take before the next one is smaller, and after which it is larger.
const SLOW: Duration = Duration::from_millis(300);
const FAST: Duration = Duration::from_millis(100);

impl World {
    /// The volume group, as to the volume of the preallocated VDI `uuid`.
    pub(crate) fn space(&mut self, session: &Session, uuid: Uuid) -> Result<Space> {
        let found = self.lvm.find(&session.sr.devices)?;
        let group = found.groups.into_iter().find(|group| group.name == session.sr.vg);
        let group =
            group.ok_or_else(|| Error::failed(format!("the volume group {} is not there", session.sr.vg)))?;
        let volume = group.lv(&names::thick_lv(session.sr.uuid, uuid));
        Ok(Space {
            free: group.free,
            extent: group.extent,
            volume: volume.map(|lv| lv.size),
            ours: volume.is_some_and(|lv| lv.is_of(session.sr.uuid)),
            pool: group.lv(&session.sr.pool_lv).map_or(0, |lv| lv.size),
        })
    }

    /// Zeroes `range` of the active volume `vg`/`lv`, whole sectors, and makes that durable. The SR need not be locked.
    ///
    /// # Errors
    /// `Cancelled` if it was asked to stop, which it sees several times a second on a device that does its part; `Failed`
    /// if the volume is not active or gives an error. Some of it may be zeroed then.
    pub(crate) fn zero(&mut self, vg: &str, lv: &str, range: Range<u64>, work: &mut Work<'_>) -> Result<()> {
        let failed = |e: io::Error| Error::failed(format!("cannot zero {vg}/{lv}")).because(e);
        let Some(device) = self.lv_device(vg, lv)? else {
            return Err(Error::failed(format!("cannot zero {vg}/{lv}: it is not active")));
        };
        let block = self.blocks.open(&device.number.dm_node(), true).map_err(failed)?;
        let total = range.end.saturating_sub(range.start);
        let (mut at, mut piece) = (range.start, PIECE);
        (work.progress)(0, total);
        while at < range.end {
            if (work.cancelled)() {
                return Err(Error::new(ErrorKind::Cancelled, "interrupted"));
            }
            let len = piece.min(range.end - at);
            let began = Instant::now();
            block.zero(at, len).map_err(failed)?;
            let took = began.elapsed();
            if took > SLOW {
                piece = (piece / 2).max(PIECE_MIN);
            } else if took < FAST {
                piece = (piece * 2).min(PIECE_MAX);
            }
            at += len;
            (work.progress)(at - range.start, total);
        }
        block.sync().map_err(failed)
    }
}
