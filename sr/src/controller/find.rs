//! Finding an SR or a VDI by what people call it.

use super::{Controller, Open};
use crate::engine::{Mode, Session, SrPlace};
use crate::error::{Error, Result};
use crate::host::{Attached, Lock};
use crate::lvm::Vg;
use crate::names::{self, Role};
use crate::record::Vdi;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// An SR that was found, attached or not.
#[derive(Clone, Debug)]
pub(super) struct FoundSr {
    pub(super) place: SrPlace,
    pub(super) name: String,
    pub(super) owns_vg: bool,
    pub(super) owns_pool: bool,
    /// Whether it has both its volumes.
    pub(super) whole: bool,
    pub(super) attached: bool,
    pub(super) group: Vg,
}

impl Controller {
    /// Every SR on this host.
    pub(super) fn scan(&mut self) -> Result<Vec<FoundSr>> {
        let attached = self.world.host.attached()?;
        let devices = self.world.host.candidates()?;
        let found = self.world.lvm.find(&devices)?;
        Ok(found.groups.iter().flat_map(|group| srs_in(group, &attached)).collect())
    }

    /// The SR that `text` means, attached or not.
    pub(super) fn find_sr(&mut self, text: &str) -> Result<FoundSr> {
        let srs = self.scan()?;
        let place = self.place(text)?;
        let matching: Vec<_> = srs
            .into_iter()
            .filter(|sr| means(text, &place, sr.place.uuid, &sr.name, &sr.place.vg, &sr.place.devices))
            .collect();
        one(matching, text, |sr| sr.place.uuid)
    }

    /// The attached SR that `text` means.
    ///
    /// # Errors
    /// `NotAttached` if the SR is there but not attached, `NotFound` if it is not there.
    pub(super) fn find_attached(&mut self, text: &str) -> Result<Attached> {
        let attached = self.world.host.attached()?;
        let place = self.place(text)?;
        let matching: Vec<_> = attached
            .into_iter()
            .filter(|sr| means(text, &place, sr.uuid, &sr.name, &sr.vg, &sr.devices))
            .collect();
        if matching.is_empty() {
            let sr = self.find_sr(text)?;
            return Err(Error::not_attached(format!(
                "SR '{}' ({}) is not attached: 'smctl sr attach {text}' attaches it",
                sr.name, sr.place.uuid
            )));
        }
        one(matching, text, |sr| sr.uuid)
    }

    /// Locks an attached SR and opens its records to change them; in a dry run, to look at them.
    pub(super) fn open_sr(&mut self, text: &str) -> Result<Open> {
        let (sr, lock) = self.lock_attached(text)?;
        Ok(Open { session: self.records(&sr)?, lock })
    }

    /// Opens the records of an SR that is locked, to change them; in a dry run, to look at them.
    pub(super) fn records(&mut self, sr: &Attached) -> Result<Session> {
        match self.mode {
            Mode::Apply => self.world.open(sr),
            Mode::DryRun => self.world.look(sr),
        }
    }

    /// Locks an attached SR and opens its records to look at them.
    pub(super) fn look_at_sr(&mut self, text: &str) -> Result<Open> {
        let (sr, lock) = self.lock_attached(text)?;
        Ok(Open { session: self.world.look(&sr)?, lock })
    }

    fn lock_attached(&mut self, text: &str) -> Result<(Attached, Lock)> {
        let sr = self.find_attached(text)?;
        let lock = self.locks.sr(sr.uuid)?;
        // It may have been detached while we waited for the lock.
        let still = self.world.host.attached()?.into_iter().find(|now| now.uuid == sr.uuid);
        let Some(sr) = still else {
            let message = format!("SR '{}' ({}) is not attached any more", sr.name, sr.uuid);
            return Err(Error::not_attached(message));
        };
        Ok((sr, lock))
    }

    /// The VDI that `text` means.
    pub(super) fn find_vdi(&mut self, session: &Session, text: &str) -> Result<Vdi> {
        let uuid = match Uuid::try_parse(text) {
            Ok(uuid) => Some(uuid),
            Err(_) if text.starts_with('/') => self.vdi_of_path(session, Path::new(text))?,
            Err(_) => None,
        };
        let mut found = Vec::new();
        match uuid {
            Some(uuid) => found.extend(session.catalog.vdi(uuid)?),
            None => {
                for uuid in session.catalog.named(text)? {
                    found.extend(session.catalog.vdi(uuid)?);
                }
            }
        }
        if found.is_empty() && text.contains('/') {
            let location = self.world.origins.canonical(text);
            found = session.catalog.vdis()?;
            found.retain(|vdi| super::vdi::location(vdi).is_some_and(|it| it == location));
        }
        if found.is_empty() {
            return Err(Error::not_found(format!("SR '{}' has no VDI '{text}'", session.sr.name)));
        }
        one(found, text, |vdi| vdi.uuid)
    }

    /// The VDI whose link, volume or device a path is; a template's, too, whose origin or NBD device it is.
    fn vdi_of_path(&mut self, session: &Session, path: &Path) -> Result<Option<Uuid>> {
        let mut uuids = path.iter().rev().filter_map(|name| Uuid::try_parse(name.to_str()?).ok());
        if let (Some(vdi), Some(sr)) = (uuids.next(), uuids.next())
            && sr == session.sr.uuid
        {
            return Ok(Some(vdi));
        }
        let volume =
            path.file_name().and_then(|name| names::vdi_of_thick_lv(session.sr.uuid, name.to_str()?));
        if volume.is_some() {
            return Ok(volume);
        }
        let Ok(number) = self.world.host.number(path) else {
            return Ok(None);
        };
        for name in self.world.dm.names()? {
            let vdi = match names::role(session.sr.uuid, &name) {
                Some(Role::Vdi(vdi) | Role::Origin(vdi)) => Some(vdi),
                // A device for the time of one operation is nobody's name for the VDI.
                Some(Role::Scratch(_)) => None,
                None => names::lv_of_device(&name)
                    .and_then(|(_, lv)| names::vdi_of_thick_lv(session.sr.uuid, &lv)),
            };
            if vdi.is_some() && self.world.dm.device(&name)?.is_some_and(|device| device.number == number) {
                return Ok(vdi);
            }
        }
        // Without its server a template has no device to be named by.
        for (template, device) in self.world.origins.attached().unwrap_or_default() {
            if self.world.host.number(&device.path).is_ok_and(|it| it == number) {
                return Ok(Some(template));
            }
        }
        Ok(None)
    }

    /// What of an SR a text names, if it is a path.
    fn place(&mut self, text: &str) -> Result<Place> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return Ok(Place::None);
        }
        if let Some(sr) = path.iter().find_map(|part| Uuid::try_parse(part.to_str()?).ok()) {
            return Ok(Place::Sr(sr));
        }
        if let Ok(number) = self.world.host.number(path) {
            let survey = self.world.host.survey()?;
            let block = survey.blocks.iter().find(|block| block.number == Some(number));
            let Some(block) = block else { return Ok(Place::Device(path.into())) };
            let Some(name) = &block.dm_name else { return Ok(Place::Device(block.path.clone())) };
            if let Some((sr, _)) = names::owner(name) {
                return Ok(Place::Sr(sr));
            }
            let volume = names::lv_of_device(name).filter(|_| block.is_lvm());
            return Ok(volume.map_or_else(|| Place::Device(block.path.clone()), |(vg, lv)| in_group(vg, &lv)));
        }
        // LVM's directory of a group, and volumes that are not active.
        let parts: Vec<_> = path.iter().skip(2).filter_map(|part| part.to_str()).collect();
        Ok(match parts.as_slice() {
            [vg] if path.starts_with("/dev") => Place::Group((*vg).to_owned()),
            [vg, lv] if path.starts_with("/dev") => in_group((*vg).to_owned(), lv),
            _ => Place::None,
        })
    }
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing of an SR.
    None,
    /// Something of this SR's.
    Sr(Uuid),
    /// A volume group, or a volume in it that may be a pool.
    Group(String),
    /// A device that may be under a volume group.
    Device(PathBuf),
}

fn in_group(vg: String, lv: &str) -> Place {
    names::sr_of_lv(lv).map_or(Place::Group(vg), Place::Sr)
}

/// The SRs in a group.
pub(super) fn srs_in(group: &Vg, attached: &[Attached]) -> Vec<FoundSr> {
    let found = |(uuid, tags): (Uuid, &[String])| {
        let pool_lv = tags.iter().find_map(|tag| names::pool_of_tag(tag));
        let pool_lv = pool_lv.map_or_else(|| names::pool_lv(uuid), String::from);
        let name = tags.iter().find_map(|tag| names::name_of_tag(tag));
        FoundSr {
            name: name.unwrap_or_else(|| uuid.to_string()),
            owns_vg: group.tags.contains(&names::sr_tag(uuid)),
            owns_pool: pool_lv == names::pool_lv(uuid),
            whole: group.lv(&names::meta_lv(uuid)).is_some() && group.lv(&pool_lv).is_some(),
            attached: attached.iter().any(|sr| sr.uuid == uuid),
            place: SrPlace { uuid, vg: group.name.clone(), pool_lv, devices: group.devices() },
            group: group.clone(),
        }
    };
    srs_of(group).into_iter().map(found).collect()
}

/// The SRs in a group, each with the tags that tell about it.
fn srs_of(group: &Vg) -> Vec<(Uuid, &[String])> {
    let mut srs: Vec<(Uuid, &[String])> = Vec::new();
    for lv in &group.lvs {
        if let Some(uuid) = names::sr_of_meta_lv(&lv.name) {
            srs.push((uuid, &lv.tags));
        }
    }
    // A group that was made for an SR whose records are not made yet, or not any more.
    if let Some(uuid) = group.tags.iter().find_map(|tag| names::sr_of_tag(tag))
        && srs.iter().all(|(other, _)| *other != uuid)
    {
        srs.push((uuid, &group.tags));
    }
    srs
}

fn means(text: &str, place: &Place, uuid: Uuid, name: &str, vg: &str, devices: &[PathBuf]) -> bool {
    match place {
        Place::None => Uuid::try_parse(text).is_ok_and(|it| it == uuid) || text == name || text == vg,
        Place::Sr(it) => *it == uuid,
        Place::Group(it) => it == vg,
        Place::Device(it) => devices.contains(it),
    }
}

fn one<T>(mut found: Vec<T>, text: &str, uuid: impl Fn(&T) -> Uuid) -> Result<T> {
    match found.len() {
        0 => Err(Error::not_found(format!("there is no SR '{text}'"))),
        1 => Ok(found.remove(0)),
        n => {
            let uuids: Vec<_> = found.iter().map(|it| uuid(it).to_string()).collect();
            Err(Error::refused(format!(
                "'{text}' may mean {n}: name one by its UUID, {}",
                uuids.join(" or ")
            )))
        }
    }
}
