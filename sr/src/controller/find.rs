//! Finding an SR or a VDI by what people call it.

use super::{Controller, Open};
use crate::engine::{Session, SrPlace};
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
        let mut srs = Vec::new();
        for group in found.groups {
            for (uuid, tags) in srs_of(&group) {
                let pool_lv = tags.iter().find_map(|tag| names::pool_of_tag(tag));
                let pool_lv = pool_lv.map_or_else(|| names::pool_lv(uuid), String::from);
                let name = tags.iter().find_map(|tag| names::name_of_tag(tag));
                srs.push(FoundSr {
                    name: name.unwrap_or_else(|| uuid.to_string()),
                    owns_vg: group.tags.contains(&names::sr_tag(uuid)),
                    owns_pool: pool_lv == names::pool_lv(uuid),
                    whole: group.lv(&names::meta_lv(uuid)).is_some() && group.lv(&pool_lv).is_some(),
                    attached: attached.iter().any(|sr| sr.uuid == uuid),
                    place: SrPlace { uuid, vg: group.name.clone(), pool_lv, devices: group.devices() },
                    group: group.clone(),
                });
            }
        }
        Ok(srs)
    }

    /// The SR that `text` means, attached or not.
    pub(super) fn find_sr(&mut self, text: &str) -> Result<FoundSr> {
        let srs = self.scan()?;
        let matching: Vec<_> = srs
            .into_iter()
            .filter(|sr| means(text, sr.place.uuid, &sr.name, &sr.place.vg, &sr.place.devices))
            .collect();
        one(matching, text, |sr| sr.place.uuid)
    }

    /// The attached SR that `text` means.
    ///
    /// # Errors
    /// `Refused` if the SR is there but not attached, `NotFound` if it is not there.
    pub(super) fn find_attached(&mut self, text: &str) -> Result<Attached> {
        let attached = self.world.host.attached()?;
        let matching: Vec<_> =
            attached.into_iter().filter(|sr| means(text, sr.uuid, &sr.name, &sr.vg, &sr.devices)).collect();
        if matching.is_empty() {
            let sr = self.find_sr(text)?;
            return Err(Error::refused(format!(
                "SR '{}' ({}) is not attached: 'smctl sr attach {text}' attaches it",
                sr.name, sr.place.uuid
            )));
        }
        one(matching, text, |sr| sr.uuid)
    }

    /// Locks an attached SR and opens its records to change them.
    pub(super) fn open_sr(&mut self, text: &str) -> Result<Open> {
        let (sr, lock) = self.lock_attached(text)?;
        Ok(Open { session: self.world.open(&sr)?, lock })
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
            return Err(Error::refused(format!("SR '{}' ({}) is not attached any more", sr.name, sr.uuid)));
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
        if found.is_empty() {
            return Err(Error::not_found(format!("SR '{}' has no VDI '{text}'", session.sr.name)));
        }
        one(found, text, |vdi| vdi.uuid)
    }

    /// The VDI whose link or device a path is.
    fn vdi_of_path(&mut self, session: &Session, path: &Path) -> Result<Option<Uuid>> {
        let mut names = path.iter().rev().filter_map(|name| Uuid::try_parse(name.to_str()?).ok());
        if let (Some(vdi), Some(sr)) = (names.next(), names.next())
            && sr == session.sr.uuid
        {
            return Ok(Some(vdi));
        }
        let Ok(number) = self.world.host.number(path) else {
            return Ok(None);
        };
        for name in self.world.dm.names()? {
            if let Some(Role::Vdi(vdi)) = names::role(session.sr.uuid, &name)
                && self.world.dm.device(&name)?.is_some_and(|device| device.number == number)
            {
                return Ok(Some(vdi));
            }
        }
        Ok(None)
    }
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

fn means(text: &str, uuid: Uuid, name: &str, vg: &str, devices: &[PathBuf]) -> bool {
    if Uuid::try_parse(text).is_ok_and(|it| it == uuid) || text == name || text == vg {
        return true;
    }
    let path = Path::new(text);
    path.is_absolute()
        && (devices.iter().any(|device| device == path)
            || path.iter().any(|part| part.to_str().is_some_and(|part| part == uuid.to_string())))
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
