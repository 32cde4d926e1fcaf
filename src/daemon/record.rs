//! What is attached, written down so that a later server finds it.
//!
//! One JSON file for each device, beside the control socket: `attached/nbd0.json`. It is written once the kernel has
//! given the device a number and removed after the kernel has let go of it. A record without a device is the trace of
//! a crash or a reboot, and so is a device of ours without a record; both are swept when a server starts.

use super::api::AttachRequest;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a later server needs to serve the device again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    /// The kernel device's number.
    pub(super) index: u32,
    /// The kernel device's size in bytes.
    pub(super) size: u64,
    /// What was asked for, with the pin of what was opened.
    pub(super) request: AttachRequest,
}

/// The directory of records beside a control socket.
pub(crate) fn directory(socket: &Path) -> PathBuf {
    socket.with_file_name("attached")
}

/// Whether there is any record beside the control socket `socket`.
pub(super) fn left_behind(socket: &Path) -> bool {
    !Records { dir: directory(socket) }.load().is_empty()
}

/// The directory of records.
#[derive(Debug)]
pub(super) struct Records {
    dir: PathBuf,
}

impl Records {
    /// Records in `dir`, which is made if need be.
    pub(super) fn open(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir)
            .map_err(|error| Error::io("cannot make the directory of records", dir.display(), &error))?;
        Ok(Records { dir })
    }

    /// Every record; files that do not parse are reported and passed over.
    pub(super) fn load(&self) -> Vec<Record> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let paths =
            entries.map(|entry| entry.path()).filter(|path| path.extension() == Some("json".as_ref()));
        paths.filter_map(|path| read(&path)).collect()
    }

    /// Writes `record`, whole or not at all.
    pub(super) fn save(&self, record: &Record) -> Result<()> {
        write_whole(&self.path(record.index), record)
    }

    /// Where they are.
    pub(super) fn directory(&self) -> &Path {
        &self.dir
    }

    /// Removes the record of device `index`, if there is one.
    pub(super) fn remove(&self, index: u32) {
        let path = self.path(index);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("{}: cannot remove: {error}", path.display());
            }
            _ => {}
        }
    }

    fn path(&self, index: u32) -> PathBuf {
        self.dir.join(format!("nbd{index}.json"))
    }
}

/// Writes `value` to `path` as JSON, whole or not at all.
pub(super) fn write_whole(path: &Path, value: &impl Serialize) -> Result<()> {
    let fail = |error: std::io::Error| Error::io("cannot write a record", path.display(), &error);
    let temporary = path.with_extension("tmp");
    let text = serde_json::to_vec(value)
        .map_err(|error| Error::failed(format!("cannot write a record: {error}")))?;
    let mut file = std::fs::File::create(&temporary).map_err(fail)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&temporary, path).map_err(fail)
}

fn read(path: &Path) -> Option<Record> {
    let parsed = std::fs::read(path)
        .map_err(|error| error.to_string())
        .and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string()));
    match parsed {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::warn!("{}: not a record: {error}", path.display());
            None
        }
    }
}
