//! Reading the pool's metadata, through a snapshot that the pool holds for the time.
//!
//! A pool holds one at most, so whoever reads through it has the SR's lock, as everyone has who has a [`Session`]. One
//! that is held when nobody can be reading was left by a process that died, and is let go of.

use super::{Session, World};
use crate::dm::{PoolMessage, PoolMode};
use crate::error::{Error, Result};
use crate::thin::{Root, Seen, ThinMetadata};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

impl World {
    /// What the thin device `id` of the pool has mapped now: ranges in bytes of the device, sorted, none adjacent to the
    /// next. What is written meanwhile may or may not be in it. The last range may reach beyond the device's end, for
    /// whole blocks of the pool are mapped.
    ///
    /// # Errors
    /// There is no such device, or the metadata cannot be read.
    pub(crate) fn mapped_ranges(&mut self, session: &Session, id: u32) -> Result<Vec<Range<u64>>> {
        self.read_held(session, |thin, device, root| thin.mapped(device, root, id))
    }

    /// Where two thin devices of the pool do not have the same block mapped, as [`World::mapped_ranges`].
    ///
    /// # Errors
    /// One of the devices is not there, or the metadata cannot be read.
    pub(crate) fn changed_ranges(&mut self, session: &Session, a: u32, b: u32) -> Result<Vec<Range<u64>>> {
        self.read_held(session, |thin, device, root| thin.changed(device, root, a, b))
    }

    /// Bytes mapped of every thin device of the pool, by id, as of the pool's last commit, which is a second ago at most.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub(crate) fn usage(&mut self, session: &Session) -> Result<BTreeMap<u32, u64>> {
        self.read_live(session, |thin, device, root| thin.usage(device, root))
    }

    /// Bytes mapped of the thin device `id`, as [`World::usage`]; `None` if there is no such device.
    ///
    /// # Errors
    /// The metadata cannot be read.
    pub(crate) fn usage_of(&mut self, session: &Session, id: u32) -> Result<Option<u64>> {
        self.read_live(session, |thin, device, root| thin.usage_of(device, root, id))
    }

    /// Reads without a snapshot, which costs the pool nothing; with one if it commits too often for that.
    fn read_live<T>(
        &mut self,
        session: &Session,
        read: impl Fn(&mut dyn ThinMetadata, &Path, Root) -> Result<Seen<T>>,
    ) -> Result<T> {
        let device = self.metadata_device(session)?;
        match read(self.thin.as_mut(), &device, Root::Live)? {
            Seen::Whole(answer) => Ok(answer),
            Seen::Moved => self.read_held(session, read),
        }
    }

    /// Reads through a metadata snapshot, which begins with a commit: what was acknowledged before is seen.
    fn read_held<T>(
        &mut self,
        session: &Session,
        read: impl Fn(&mut dyn ThinMetadata, &Path, Root) -> Result<Seen<T>>,
    ) -> Result<T> {
        let device = self.metadata_device(session)?;
        let (_, status) = self.pool_status(session)?;
        let pool = session.pool();
        let (root, held) = match status.mode {
            PoolMode::ReadWrite | PoolMode::OutOfDataSpace => {
                if status.held_root.is_some() {
                    self.dm.message(&pool, PoolMessage::ReleaseMetadataSnap)?;
                }
                self.dm.message(&pool, PoolMessage::ReserveMetadataSnap)?;
                let (_, status) = self.pool_status(session)?;
                let root = status.held_root.ok_or_else(|| {
                    Error::failed(format!("{pool} does not say where its metadata snapshot begins"))
                })?;
                (Root::Held(root), true)
            }
            // It takes no messages, and nothing changes.
            PoolMode::ReadOnly => (Root::Live, false),
            PoolMode::Failed => return Err(Error::failed(format!("the thin pool {pool} has failed"))),
        };
        let answer = read(self.thin.as_mut(), &device, root);
        // Whatever came of the reading.
        let released = if held { self.dm.message(&pool, PoolMessage::ReleaseMetadataSnap) } else { Ok(()) };
        match answer? {
            Seen::Whole(answer) => Ok(released.map(|()| answer)?),
            Seen::Moved => {
                Err(Error::failed(format!("the metadata of {pool} changes though it is read-only")))
            }
        }
    }

    /// The device that the pool's metadata is on.
    fn metadata_device(&mut self, session: &Session) -> Result<PathBuf> {
        let lv = format!("{}_tmeta", session.sr.pool_lv);
        match self.lv_device(&session.sr.vg, &lv)? {
            Some(device) => Ok(device.number.dm_node()),
            None => Err(Error::failed(format!("the metadata volume {}/{lv} is not active", session.sr.vg))),
        }
    }
}
