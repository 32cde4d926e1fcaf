//! The verbs of VDIs.

use super::{Controller, Report, Work};
use crate::dm::{SECTOR, ThinStatus};
use crate::engine::{Done, Mode, Session};
use crate::error::{Error, Result};
use crate::names::{self, Role};
use crate::plan::{Goal, size_text};
use crate::record::{Body, Vdi};
use crate::view::VdiInfo;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use uuid::Uuid;

/// A template to be introduced.
#[derive(Clone, Debug, Default)]
pub struct VdiIntroduce {
    /// Where the image is.
    pub location: String,
    /// Its name; the file's without its extension if not given.
    pub name: Option<String>,
    /// For how many seconds reads wait for its server while that is away; as the server has it if not given.
    pub patience: Option<u64>,
}

/// An empty disk to be made.
#[derive(Clone, Debug, Default)]
pub struct VdiCreate {
    /// Its name.
    pub name: String,
    /// Its size, in bytes; rounded up to whole sectors.
    pub size: u64,
}

/// A clone or a snapshot to be made.
#[derive(Clone, Debug, Default)]
pub struct VdiClone {
    /// Its name; made from its parent's if not given.
    pub name: Option<String>,
    /// Its size, in bytes; its parent's if not given, and never less.
    pub size: Option<u64>,
}

impl Controller {
    /// Records a template. Nothing is copied; its header is read, and its version pinned.
    ///
    /// # Errors
    /// `Failed` if the location holds no image that can be opened.
    pub fn vdi_introduce(&mut self, sr: &str, request: &VdiIntroduce) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let probed = self.world.origins.probe(&request.location).map_err(|e| Error::failed(e.message))?;
        let vdi = Vdi {
            uuid: Uuid::new_v4(),
            name: request.name.clone().unwrap_or_else(|| name_of(&probed.location)),
            virtual_size: whole_sectors(probed.virtual_size)?,
            body: Body::Template {
                location: probed.location,
                identity: probed.identity,
                format: probed.format,
                patience: request.patience,
                local: None,
            },
            origin: None,
            parent: None,
            snapshot_of: None,
            read_only: true,
        };
        let uuid = vdi.uuid;
        self.reach(&mut open.session, uuid, &Goal::Recorded(vdi))
    }

    /// Makes an empty thin disk.
    ///
    /// # Errors
    /// `Refused` for a size that cannot be.
    pub fn vdi_create(&mut self, sr: &str, request: &VdiCreate) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = Vdi {
            uuid: Uuid::new_v4(),
            name: request.name.clone(),
            body: Body::Thin { id: 0 },
            virtual_size: whole_sectors(request.size)?,
            origin: None,
            parent: None,
            snapshot_of: None,
            read_only: false,
        };
        self.make(&mut open.session, vdi, None)
    }

    /// Makes a disk that begins with the content of a template or of another disk. Nothing is copied.
    ///
    /// # Errors
    /// `Refused` for a size below the parent's, or a preallocated parent.
    pub fn vdi_clone(&mut self, sr: &str, vdi: &str, request: &VdiClone) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let parent = self.find_vdi(&open.session, vdi)?;
        let name = request.name.clone().unwrap_or_else(|| format!("{} clone", parent.name));
        let clone = child(&parent, name, request.size)?;
        self.make(&mut open.session, clone, Some(parent.uuid))
    }

    /// Keeps a disk's content as it is now, as a read-only VDI. A guest that writes waits for a moment.
    ///
    /// # Errors
    /// `Refused` for a template, which does not change, and a preallocated disk.
    pub fn vdi_snapshot(&mut self, sr: &str, vdi: &str, request: &VdiClone) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let parent = self.find_vdi(&open.session, vdi)?;
        if parent.is_template() {
            return Err(Error::refused(format!(
                "'{}' is a template, which does not change and needs no snapshot",
                parent.name
            )));
        }
        let name = request.name.clone().unwrap_or_else(|| format!("{} snapshot", parent.name));
        let mut snapshot = child(&parent, name, None)?;
        snapshot.snapshot_of = Some(parent.uuid);
        snapshot.read_only = true;
        self.make(&mut open.session, snapshot, Some(parent.uuid))
    }

    fn make(&mut self, session: &mut Session, vdi: Vdi, from: Option<Uuid>) -> Result<Report<VdiInfo>> {
        let uuid = vdi.uuid;
        self.reach(session, uuid, &Goal::Made { vdi, from })
    }

    /// Gives a disk the content of one of its snapshots; what it held is gone.
    ///
    /// # Errors
    /// `Refused` while it is attached, and for what is no snapshot of it.
    pub fn vdi_revert(&mut self, sr: &str, vdi: &str, snapshot: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        let from = self.find_vdi(&open.session, snapshot)?.uuid;
        let mut done = self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Settled)?;
        let id = open.session.catalog.ledger()?.next_thin_id;
        let goal = Goal::Reverted { from, id };
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &goal)?);
        self.vdi_report(&open.session, done, vdi.uuid)
    }

    /// Makes a disk larger; an attached one at once. What is added, and what is beyond its template, reads as zeros. For a
    /// preallocated disk that takes time, in which others have the SR; a stop leaves it as it was.
    ///
    /// # Errors
    /// `Refused` for a size below what it is, for what is no disk, and where the group has no room for a preallocated one;
    /// `Cancelled` if it was asked to stop.
    pub fn vdi_resize(
        &mut self,
        sr: &str,
        vdi: &str,
        size: u64,
        work: &mut Work<'_>,
    ) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let mut vdi = self.find_vdi(&open.session, vdi)?;
        let size = whole_sectors(size)?;
        if vdi.is_template() || vdi.snapshot_of.is_some() {
            return Err(Error::refused(format!(
                "'{}' is a template or a snapshot, and only disks can grow",
                vdi.name
            )));
        }
        if size < vdi.virtual_size {
            return Err(Error::refused(format!(
                "'{}' has {} and cannot shrink to {}",
                vdi.name,
                size_text(vdi.virtual_size),
                size_text(size)
            )));
        }
        if vdi.body == Body::Thick {
            let larger = Vdi { virtual_size: size, ..vdi.clone() };
            return self.grow_thick(open, &vdi, &larger, work);
        }
        vdi.virtual_size = size;
        let uuid = vdi.uuid;
        self.reach(&mut open.session, uuid, &Goal::Recorded(vdi))
    }

    /// Gives a VDI another name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn vdi_rename(&mut self, sr: &str, vdi: &str, name: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let mut vdi = self.find_vdi(&open.session, vdi)?;
        vdi.name = name.into();
        let uuid = vdi.uuid;
        self.reach(&mut open.session, uuid, &Goal::Recorded(vdi))
    }

    /// Gives a VDI a device, `/dev/thinorigin/SR/VDI`, with its template under it.
    ///
    /// # Errors
    /// `Failed` if its template cannot be opened, or is not the version that it was; `Refused` if it is attached
    /// another way.
    pub fn vdi_attach(&mut self, sr: &str, vdi: &str, read_only: bool) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        self.reach(&mut open.session, vdi.uuid, &Goal::Attached { read_only })
    }

    /// Takes a VDI's device away, and its template's when nothing else stands on it.
    ///
    /// # Errors
    /// `Refused` while the device is in use, with who uses it.
    pub fn vdi_detach(&mut self, sr: &str, vdi: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        self.reach(&mut open.session, vdi.uuid, &Goal::Detached)
    }

    /// Destroys a disk, or forgets a template. What was cloned from a disk lives on.
    ///
    /// # Errors
    /// `Refused` while it is attached, and for a template that VDIs still show.
    pub fn vdi_destroy(&mut self, sr: &str, vdi: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        if vdi.body == Body::Thick {
            return self.destroy_thick(open, &vdi);
        }
        self.reach(&mut open.session, vdi.uuid, &Goal::Gone)
    }

    /// Forgets a template.
    ///
    /// # Errors
    /// `Refused` for what is not a template, and while VDIs still show it.
    pub fn vdi_forget(&mut self, sr: &str, vdi: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        if !vdi.is_template() {
            return Err(Error::refused(format!(
                "'{}' is a disk, and only a template can be forgotten: 'smctl vdi destroy' destroys a disk",
                vdi.name
            )));
        }
        self.reach(&mut open.session, vdi.uuid, &Goal::Gone)
    }

    fn reach(&mut self, session: &mut Session, uuid: Uuid, goal: &Goal) -> Result<Report<VdiInfo>> {
        let mut done = self.sweep(session)?;
        done.extend(self.world.drive_vdi(self.mode, session, uuid, goal)?);
        self.vdi_report(session, done, uuid)
    }

    pub(super) fn vdi_report(
        &mut self,
        session: &Session,
        done: Vec<Done>,
        uuid: Uuid,
    ) -> Result<Report<VdiInfo>> {
        let mut done = done;
        let warnings = self.tend_open(session, &mut done);
        let record = match session.catalog.vdi(uuid)? {
            Some(vdi) if self.mode == Mode::Apply => Some(self.show_one(session, &vdi)?),
            _ => None,
        };
        Ok(Report::new(done, record).with_warnings(warnings))
    }

    /// Every VDI of an SR.
    ///
    /// # Errors
    /// `NotFound`; `NotAttached` if the SR is not attached.
    pub fn vdi_list(&mut self, sr: &str) -> Result<Vec<VdiInfo>> {
        let open = self.look_at_sr(sr)?;
        let names = self.world.dm.names()?;
        let attached: BTreeSet<_> = names
            .iter()
            .filter_map(|name| match names::role(open.session.sr.uuid, name) {
                Some(Role::Vdi(vdi)) => Some(vdi),
                _ => None,
            })
            .collect();
        let vdis = open.session.catalog.vdis()?;
        let usage = self.known_usage(&open.session);
        let sizes: BTreeMap<_, _> = vdis
            .iter()
            .filter(|vdi| vdi.is_template())
            .map(|template| (template.uuid, template.virtual_size))
            .collect();
        let mut infos = Vec::with_capacity(vdis.len());
        for vdi in &vdis {
            let physical = vdi.thin_id().and_then(|id| usage.get(&id).copied());
            let template = vdi.origin.and_then(|origin| sizes.get(&origin).copied());
            infos.push(match attached.contains(&vdi.uuid) {
                true => self.show(&open.session, vdi, physical, template)?,
                false => self.info(&open.session, vdi, false, physical, template),
            });
        }
        Ok(infos)
    }

    /// One VDI.
    ///
    /// # Errors
    /// `NotFound`; `NotAttached` if the SR is not attached.
    pub fn vdi_info(&mut self, sr: &str, vdi: &str) -> Result<VdiInfo> {
        let open = self.look_at_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        self.show_one(&open.session, &vdi)
    }

    /// Bytes mapped of every thin device; none where the metadata cannot be read, for the rest can still be shown.
    pub(super) fn known_usage(&mut self, session: &Session) -> BTreeMap<u32, u64> {
        self.world.usage(session).unwrap_or_else(|e| {
            tracing::warn!("what the disks of SR '{}' use is not known: {e}", session.sr.name);
            BTreeMap::new()
        })
    }

    pub(super) fn show_one(&mut self, session: &Session, vdi: &Vdi) -> Result<VdiInfo> {
        let physical = match vdi.thin_id() {
            Some(id) => self.world.usage_of(session, id).unwrap_or_else(|e| {
                tracing::warn!("what '{}' uses is not known: {e}", vdi.name);
                None
            }),
            None => None,
        };
        let template = match vdi.origin {
            Some(origin) => session.catalog.vdi(origin)?,
            None => None,
        };
        self.show(session, vdi, physical, template.map(|template| template.virtual_size))
    }

    /// A VDI for users, with its device if it has one. The device tells what is mapped now; `physical` is what the
    /// metadata said when it was last written, `template` the size of the template that it shows.
    fn show(
        &mut self,
        session: &Session,
        vdi: &Vdi,
        physical: Option<u64>,
        template: Option<u64>,
    ) -> Result<VdiInfo> {
        let name = names::vdi_device(session.sr.uuid, vdi.uuid).name;
        let attached = self.world.dm.device(&name)?.is_some_and(|device| device.table.is_some());
        let mut physical = physical;
        if attached && vdi.thin_id().is_some() {
            let status = ThinStatus::parse(&self.world.dm.status(&name)?);
            physical = status.map(|status| status.mapped).or(physical);
        }
        Ok(self.info(session, vdi, attached, physical, template))
    }

    /// A VDI for users, from what is known. `physical` is asked for of thin disks only.
    fn info(
        &self,
        session: &Session,
        vdi: &Vdi,
        attached: bool,
        physical: Option<u64>,
        template: Option<u64>,
    ) -> VdiInfo {
        let shown = template.map(|template| template.min(vdi.virtual_size));
        let from_template = shown.zip(physical).map(|(shown, mapped)| shown.saturating_sub(mapped));
        let physical = match vdi.body {
            Body::Template { .. } => Some(0),
            Body::Thick => Some(vdi.virtual_size),
            Body::Thin { .. } => physical,
        };
        VdiInfo {
            uuid: vdi.uuid,
            name: vdi.name.clone(),
            kind: if vdi.is_template() { "template" } else { "disk" },
            read_only: vdi.read_only,
            virtual_size: vdi.virtual_size,
            physical_utilisation: physical,
            parent: vdi.parent,
            location: location(vdi),
            patience: match vdi.body {
                Body::Template { patience, .. } => patience,
                Body::Thin { .. } | Body::Thick => None,
            },
            origin: vdi.origin,
            attached,
            device: attached.then(|| self.device_path(session, vdi)),
            snapshot_of: vdi.snapshot_of,
            preallocated: vdi.body == Body::Thick,
            from_template,
            from_template_percent: from_template
                .zip(shown)
                .and_then(|(left, all)| u64::try_from(u128::from(left) * 100 / u128::from(all.max(1))).ok()),
            local_copy: vdi.is_template().then(|| vdi.local_ready().is_some()),
        }
    }

    fn device_path(&self, session: &Session, vdi: &Vdi) -> PathBuf {
        names::link(&self.dev_dir, session.sr.uuid, vdi.uuid)
    }
}

/// Where a template's image is.
pub(crate) fn location(vdi: &Vdi) -> Option<String> {
    vdi.location().map(String::from)
}

/// The record of a clone: whoever descends from something with an origin has that origin.
fn child(parent: &Vdi, name: String, size: Option<u64>) -> Result<Vdi> {
    Ok(Vdi {
        uuid: Uuid::new_v4(),
        name,
        body: Body::Thin { id: 0 },
        virtual_size: whole_sectors(size.unwrap_or(parent.virtual_size))?,
        origin: if parent.is_template() { Some(parent.uuid) } else { parent.origin },
        parent: Some(parent.uuid),
        snapshot_of: None,
        read_only: false,
    })
}

pub(super) fn whole_sectors(size: u64) -> Result<u64> {
    size.checked_next_multiple_of(SECTOR)
        .ok_or_else(|| Error::refused(format!("a VDI cannot have {size} bytes")))
}

/// The last part of a location, without its extension.
fn name_of(location: &str) -> String {
    let path = location.split(['?', '#']).next().unwrap_or_default();
    let file = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    if stem.is_empty() { "template".into() } else { stem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_named_after_its_file() {
        for (location, name) in [
            ("http://h/images/debian-12.qcow2", "debian-12"),
            ("s3://b/k/img.tar.vhd?versionId=a.b/c", "img.tar"),
            ("/srv/plain", "plain"),
            ("/srv/.hidden", "template"),
            ("", "template"),
        ] {
            assert_eq!(name_of(location), name, "{location}");
        }
    }
}
