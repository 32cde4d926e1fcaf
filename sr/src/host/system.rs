//! This host, by `/sys`, `/proc` and the file system.

use super::{Attached, BlockDevice, Disk, Host, Survey};
use crate::Outcome;
use crate::dm::{DeviceNumber, SECTOR};
use crate::error::{Error, Result};
use crate::names;
use serde::Deserialize;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use uuid::Uuid;

/// This host.
#[derive(Debug)]
pub struct SystemHost {
    run: PathBuf,
    dev: PathBuf,
}

impl SystemHost {
    /// A host that remembers under `run` (`/run/thinorigin`) and links under `dev` (`/dev/thinorigin`).
    pub fn new(run: &Path, dev: &Path) -> Self {
        Self { run: run.into(), dev: dev.into() }
    }

    fn memory(&self) -> PathBuf {
        self.run.join("sr")
    }
}

pub(super) fn failed<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |e| Error::failed(format!("cannot {verb} {}", path.display())).because(e)
}

/// The result, with `None` where there is no such file.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

pub(super) fn sysfs(device: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{device}"))
}

/// A file of `/sys`, which has one line; empty if there is no such file.
pub(super) fn line(path: &Path) -> Result<String> {
    let text = existing(fs::read_to_string(path)).map_err(failed("read", path))?;
    Ok(text.unwrap_or_default().trim_end().to_owned())
}

pub(super) fn entries(path: &Path) -> Result<Vec<String>> {
    let Some(entries) = existing(fs::read_dir(path)).map_err(failed("read", path))? else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

impl Host for SystemHost {
    fn number(&mut self, device: &Path) -> Result<DeviceNumber> {
        let metadata = match existing(fs::metadata(device)).map_err(failed("look at", device))? {
            Some(metadata) => metadata,
            None => return Err(Error::not_found(format!("there is no device {}", device.display()))),
        };
        if !metadata.file_type().is_block_device() {
            return Err(Error::refused(format!("{} is not a block device", device.display())));
        }
        Ok(DeviceNumber { major: libc::major(metadata.rdev()), minor: libc::minor(metadata.rdev()) })
    }

    fn disk(&mut self, device: &Path) -> Result<Disk> {
        let number = self.number(device)?;
        let path = fs::canonicalize(device).map_err(failed("look at", device))?;
        let sectors = line(&sysfs(number).join("size"))?;
        let sectors: u64 = sectors
            .parse()
            .map_err(|_| Error::failed(format!("the kernel does not tell the size of {}", path.display())))?;
        Ok(Disk { size: sectors * SECTOR, users: self.users(number)?, signatures: signatures(&path)?, path })
    }

    fn users(&mut self, device: DeviceNumber) -> Result<Vec<String>> {
        let mut users = Vec::new();
        // proc_pid_mountinfo(5): the third field is the device, the fifth the mount point.
        let mounts = Path::new("/proc/self/mountinfo");
        for mount in fs::read_to_string(mounts).map_err(failed("read", mounts))?.lines() {
            let mut fields = mount.split(' ').skip(2);
            if fields.next() == Some(&device.to_string())
                && let Some(place) = fields.nth(1)
            {
                users.push(format!("mounted at {place}"));
            }
        }
        let swaps =
            existing(fs::read_to_string("/proc/swaps")).map_err(failed("read", Path::new("/proc/swaps")))?;
        for swap in swaps.unwrap_or_default().lines().skip(1) {
            let path = Path::new(swap.split_ascii_whitespace().next().unwrap_or_default());
            if self.number(path).is_ok_and(|number| number == device) {
                users.push("swap space".into());
            }
        }
        for holder in entries(&sysfs(device).join("holders"))? {
            let name = line(&Path::new("/sys/class/block").join(&holder).join("dm/name"))?;
            let name = if name.is_empty() { holder } else { name };
            users.push(format!("under the device {name}"));
        }
        // A disk whose partition is used is used.
        let sys = sysfs(device);
        for entry in entries(&sys)? {
            let part = sys.join(&entry);
            if part.join("partition").exists()
                && let Ok(number) = line(&part.join("dev"))?.parse::<DeviceNumber>()
            {
                users.extend(self.users(number)?.into_iter().map(|user| format!("{user} ({entry})")));
            }
        }
        Ok(users)
    }

    fn answer(&mut self, devices: &[(DeviceNumber, Range<u64>)], patience: Duration) -> Result<Vec<bool>> {
        super::pulse::answers(devices, patience)
    }

    fn candidates(&mut self) -> Result<Vec<PathBuf>> {
        let survey = self.survey()?;
        // LVM's own volumes are no place for our physical volumes, nor is anything that serves a guest.
        let candidate = |block: &&BlockDevice| !block.is_lvm() && !survey.is_guests(block);
        Ok(survey.blocks.iter().filter(candidate).map(|block| block.path.clone()).collect())
    }

    fn survey(&mut self) -> Result<Survey> {
        Survey::read(Path::new("/"))
    }

    fn link(&mut self, sr: Uuid, vdi: Uuid) -> Result<Option<PathBuf>> {
        let link = names::link(&self.dev, sr, vdi);
        existing(fs::read_link(&link)).map_err(failed("read", &link))
    }

    fn links(&mut self, sr: Uuid) -> Result<Vec<Uuid>> {
        let names = entries(&self.dev.join(sr.to_string()))?;
        Ok(names.iter().filter_map(|name| Uuid::try_parse(name).ok()).collect())
    }

    fn set_link(&mut self, sr: Uuid, vdi: Uuid, target: &Path) -> Result<Outcome> {
        if self.link(sr, vdi)?.as_deref() == Some(target) {
            return Ok(Outcome::Unchanged);
        }
        let link = names::link(&self.dev, sr, vdi);
        let directory = self.dev.join(sr.to_string());
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        // A rename replaces the old link in one step, so nobody finds none.
        let new = directory.join(format!("{vdi}.new"));
        existing(fs::remove_file(&new)).map_err(failed("remove", &new))?;
        symlink(target, &new).map_err(failed("make", &new))?;
        fs::rename(&new, &link).map_err(failed("make", &link))?;
        Ok(Outcome::Changed)
    }

    fn remove_link(&mut self, sr: Uuid, vdi: Uuid) -> Result<Outcome> {
        let link = names::link(&self.dev, sr, vdi);
        let removed = existing(fs::remove_file(&link)).map_err(failed("remove", &link))?;
        Ok(Outcome::from(removed.is_some()))
    }

    fn attached(&mut self) -> Result<Vec<Attached>> {
        let directory = self.memory();
        let mut attached = Vec::new();
        for name in entries(&directory)? {
            let path = directory.join(&name);
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            // It may have been detached since the directory was read.
            if let Some(text) = existing(fs::read(&path)).map_err(failed("read", &path))? {
                let sr = serde_json::from_slice(&text)
                    .map_err(|e| Error::failed(format!("{} is damaged", path.display())).because(e))?;
                attached.push(sr);
            }
        }
        Ok(attached)
    }

    fn remember(&mut self, sr: &Attached) -> Result<()> {
        let directory = self.memory();
        fs::create_dir_all(&directory).map_err(failed("make", &directory))?;
        let text = serde_json::to_vec_pretty(sr)
            .map_err(|e| Error::failed("cannot write what is to be remembered").because(e))?;
        let path = directory.join(format!("{}.json", sr.uuid));
        // The directory is in memory and forgotten at boot, so a rename suffices and nothing needs to be synced.
        let new = directory.join(format!("{}.new", sr.uuid));
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("write", &path))
    }

    fn forget(&mut self, sr: Uuid) -> Result<()> {
        let links = self.dev.join(sr.to_string());
        match existing(fs::remove_dir(&links)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(e) => return Err(failed("remove", &links)(e)),
        }
        let path = self.memory().join(format!("{sr}.json"));
        existing(fs::remove_file(&path)).map_err(failed("remove", &path))?;
        Ok(())
    }
}

/// What `wipefs` finds on a device.
///
/// LVM's label is left out: what matters is whether the physical volume is in a group, and LVM is asked that.
fn signatures(device: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Report {
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        r#type: String,
        label: Option<String>,
    }
    let output = Command::new("wipefs")
        .args(["--no-act", "--json", "--noheadings"])
        .arg(device)
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                Error::failed("the command 'wipefs' is missing: install the package util-linux")
            }
            _ => Error::failed("cannot run 'wipefs'").because(e),
        })?;
    if !output.status.success() {
        return Err(Error::failed(format!(
            "cannot look for signatures on {}: {}",
            device.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    if output.stdout.trim_ascii().is_empty() {
        return Ok(Vec::new());
    }
    let report: Report = serde_json::from_slice(&output.stdout)
        .map_err(|e| Error::failed("the report of 'wipefs' cannot be read").because(e))?;
    let words = |signature: Signature| match signature.label {
        Some(label) if !label.is_empty() => format!("{} '{label}'", signature.r#type),
        _ => signature.r#type,
    };
    let mut signatures: Vec<_> = report
        .signatures
        .into_iter()
        .filter(|signature| signature.r#type != "LVM2_member")
        .map(words)
        .collect();
    signatures.dedup();
    Ok(signatures)
}
