//! Copying a template into the SR.

use super::{Session, Slice, World};
use crate::error::{Error, Result};
use crate::host::Block;
use crate::names;
use crate::plan::Room;
use crate::record::{LocalCopy, Run, Vdi};
use std::io;
use std::path::Path;
use std::time::Instant;
use uuid::Uuid;

/// How much is copied at a time, in bytes.
const STEP: u64 = 1 << 20;

/// A template's local copy being filled: every run is copied, and then read back and compared.
#[derive(Debug)]
pub(crate) struct Filling {
    copy: LocalCopy,
    /// What is copied, in steps: where it is in the template. The copy has them one after another.
    steps: Vec<Run>,
    /// The checksums of the steps that are copied.
    sums: Vec<u32>,
    /// How many steps were read back.
    verified: usize,
    offset: u64,
}

impl Filling {
    /// Of this copy, from its beginning.
    pub(crate) fn new(copy: LocalCopy) -> Self {
        let steps = copy.runs.iter().flat_map(|run| {
            let end = run.start + run.len;
            let from = (run.start..end).step_by(STEP as usize);
            from.map(move |start| Run { start, len: STEP.min(end - start) })
        });
        Self { steps: steps.collect(), copy, sums: Vec::new(), verified: 0, offset: 0 }
    }

    /// The copy that is being filled.
    pub(crate) fn copy(&self) -> &LocalCopy {
        &self.copy
    }

    /// Bytes that are copied or read back, and how many that will be in the end.
    pub(crate) fn progress(&self) -> (u64, u64) {
        let sum = |steps: &[Run]| steps.iter().map(|step| step.len).sum::<u64>();
        (sum(&self.steps[..self.sums.len()]) + sum(&self.steps[..self.verified]), 2 * sum(&self.steps))
    }

    /// Whether everything is copied and was read back.
    pub(crate) fn is_done(&self) -> bool {
        self.verified == self.steps.len() && self.sums.len() == self.steps.len()
    }

    /// One step further.
    fn advance(&mut self, from: &dyn Block, to: &dyn Block) -> io::Result<()> {
        if let Some(step) = self.steps.get(self.sums.len()) {
            let bytes = from.read(step.start, step.len as usize)?;
            to.write(self.offset, &bytes)?;
            self.sums.push(crc32fast::hash(&bytes));
            self.offset += step.len;
            if self.sums.len() == self.steps.len() {
                to.sync()?;
                self.offset = 0;
            }
        } else if let Some(step) = self.steps.get(self.verified) {
            let bytes = to.read(self.offset, step.len as usize)?;
            if self.sums.get(self.verified) != Some(&crc32fast::hash(&bytes)) {
                return Err(io::Error::other(format!(
                    "what was written of {:#x} reads back as something else",
                    step.start
                )));
            }
            self.offset += step.len;
            self.verified += 1;
        }
        Ok(())
    }
}

impl World {
    /// The volume group, as to the local copy of `template`.
    pub(super) fn local_room(&mut self, session: &Session, template: &Vdi) -> Result<Room> {
        let found = self.lvm.find(&session.sr.devices)?;
        let lv = names::local_lv(session.sr.uuid, template.uuid);
        let group = found.groups.into_iter().find(|group| group.name == session.sr.vg);
        let group =
            group.ok_or_else(|| Error::failed(format!("the volume group {} is not there", session.sr.vg)))?;
        Ok(Room { exists: group.lv(&lv).is_some(), free: group.free, extent: group.extent })
    }

    /// Activates a local copy's volume, or says what to do if it is lost.
    pub(super) fn activate_local(
        &mut self,
        session: &Session,
        template: Uuid,
        name: &str,
        vg: &str,
        lv: &str,
    ) -> Result<()> {
        let found = self.lvm.find(&session.sr.devices)?;
        let there = found.groups.iter().any(|group| group.name == vg && group.lv(lv).is_some());
        if !there {
            let sr = &session.sr.name;
            return Err(Error::failed(format!(
                "the local copy of template '{name}' ({vg}/{lv}) is lost: 'smctl vdi localise --undo {sr} {template}' \
                 has the template read from its location again"
            )));
        }
        self.lvm.activate(&session.sr.devices, vg, lv)
    }

    /// Fills a local copy until all of it is there, or as long as the slice lasts. The template is open and padded, and
    /// the copy's volume active.
    pub(crate) fn fill(
        &mut self,
        session: &Session,
        template: &Vdi,
        filling: &mut Filling,
        slice: &Slice<'_>,
    ) -> Result<()> {
        let sr = session.sr.uuid;
        let lv = names::local_lv(sr, template.uuid);
        let pad = self.dm.device(&names::origin_device(sr, template.uuid).name)?;
        let (Some(pad), Some(volume)) = (pad, self.lv_device(&session.sr.vg, &lv)?) else {
            return Err(Error::failed(format!(
                "template '{}' cannot be copied: it is not open",
                template.name
            )));
        };
        let failed = |e: io::Error| {
            Error::failed(format!("cannot copy template '{}' to {}/{lv}", template.name, session.sr.vg))
                .because(e)
        };
        let mut open = |path: &Path, write| self.blocks.open(path, write).map_err(failed);
        let from = open(&pad.number.dm_node(), false)?;
        let to = open(&volume.number.dm_node(), true)?;
        while !filling.is_done() && !(slice.stop)() {
            filling.advance(from.as_ref(), to.as_ref()).map_err(failed)?;
            if Instant::now() >= slice.until {
                break;
            }
        }
        Ok(())
    }
}
