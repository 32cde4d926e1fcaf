//! The verbs that look at more than one SR: what the host has, and what stands on what.

use super::Controller;
use crate::engine::Session;
use crate::error::{ErrorKind, Result};
use crate::host::Survey;
use crate::names;
use crate::record::Vdi;
use crate::tree::{Disk, Seen, Template, Tree};
use crate::volumes::{self, HostVolume};

impl Controller {
    /// Disks, partitions, volume groups, logical volumes, device-mapper devices and mounted file systems of this host,
    /// and which stands on which. The kernel's tables are read, and LVM's reports of devices that are no guest's.
    ///
    /// # Errors
    /// The kernel's tables cannot be read, or LVM fails.
    pub fn host_volumes(&mut self) -> Result<Vec<HostVolume>> {
        // Unlocked: this looks at what is there now, and shows what somebody is making as far as it has come.
        let devices = self.world.host.candidates()?;
        let found = self.world.lvm.find(&devices)?;
        Ok(volumes::list(&self.world.host.survey()?, &found))
    }

    /// From disks to the users of VDIs, and from images to the VDIs that show them; of one SR, or of all.
    ///
    /// # Errors
    /// `NotFound`; the kernel's tables cannot be read, or LVM fails.
    pub fn tree(&mut self, sr: Option<&str>) -> Result<Vec<Tree>> {
        let found = match sr {
            Some(text) => vec![self.find_sr(text)?],
            None => self.scan()?,
        };
        let host = self.host_volumes()?;
        let mut trees = Vec::new();
        for sr in found {
            let seen = match sr.attached {
                true => self.look(&sr.place.uuid.to_string()).map(Some),
                false => Ok(None),
            };
            // As in `sr list`, one that cannot be read hides no other.
            let (seen, error) = match seen {
                Ok(seen) => (seen, None),
                Err(e) if e.kind == ErrorKind::NotAttached => (None, None),
                Err(e) => (None, Some(e.with_causes())),
            };
            let tree = Tree::grow(sr.place.uuid, &sr.name, &sr.place.vg, &host, seen);
            trees.push(Tree { attached: tree.attached || error.is_some(), error, ..tree });
        }
        Ok(trees)
    }

    /// What an attached SR's records and devices say.
    fn look(&mut self, sr: &str) -> Result<Seen> {
        let open = self.look_at_sr(sr)?;
        // Without its pool it is as good as detached.
        self.world.pool_status(&open.session)?;
        let survey = self.world.host.survey()?;
        let mut seen = Seen { pool_lv: open.session.sr.pool_lv.clone(), ..Seen::default() };
        for vdi in open.session.catalog.vdis()? {
            match super::vdi::location(&vdi) {
                Some(location) => seen.templates.push(Template {
                    uuid: vdi.uuid,
                    name: vdi.name.clone(),
                    location,
                    size: vdi.virtual_size,
                    device: self.node_of(&survey, &names::origin_device(open.session.sr.uuid, vdi.uuid).name),
                    served_by: None,
                }),
                None => seen.disks.push(self.look_at_disk(&open.session, &survey, &vdi)?),
            }
        }
        // A server that does not answer keeps nobody from seeing what the kernel has.
        for (template, device) in self.world.origins.attached().unwrap_or_default() {
            if let Some(found) = seen.templates.iter_mut().find(|found| found.uuid == template) {
                found.served_by = Some(device.path);
            }
        }
        Ok(seen)
    }

    fn look_at_disk(&mut self, session: &Session, survey: &Survey, vdi: &Vdi) -> Result<Disk> {
        let info = self.show_one(session, vdi)?;
        let block = names::vdi_device(session.sr.uuid, vdi.uuid).name;
        let number = survey
            .blocks
            .iter()
            .find(|it| it.dm_name.as_ref() == Some(&block))
            .and_then(|block| block.number);
        let users = match number {
            Some(number) => self.world.host.users(number)?,
            None => Vec::new(),
        };
        Ok(Disk { info, users })
    }

    fn node_of(&self, survey: &Survey, dm_name: &str) -> Option<std::path::PathBuf> {
        let named = survey.blocks.iter().find(|block| block.dm_name.as_deref() == Some(dm_name));
        named.map(|block| block.path.clone())
    }
}
