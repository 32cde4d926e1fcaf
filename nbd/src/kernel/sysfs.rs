//! What `/sys/block/nbdN` tells.

use super::error::{Error, ErrorKind};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One device's directory.
#[derive(Clone, Debug)]
pub(super) struct Sysfs(PathBuf);

impl Sysfs {
    pub(super) fn of(index: u32) -> Self {
        Self(PathBuf::from(format!("/sys/block/nbd{index}")))
    }

    #[cfg(test)]
    pub(super) fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// The numbers of all devices there are, connected or not, in order.
    pub(super) fn indices() -> Result<Vec<u32>, Error> {
        indices_in(Path::new("/sys/block")).map_err(|error| Error::system("cannot read /sys/block", &error))
    }

    /// An attribute without the line end; `None` if there is none, as where the device is not connected.
    fn attribute(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.0.join(name)).ok().map(|text| text.trim_end_matches('\n').to_owned())
    }

    /// Whether the kernel has a configuration for it: it is connected, or somebody still has it open.
    pub(super) fn connected(&self) -> bool {
        self.attribute("pid").is_some()
    }

    /// What the device was connected with; `None` before Linux 5.14.
    pub(super) fn backend(&self) -> Option<String> {
        self.attribute("backend")
    }

    /// Size in bytes.
    pub(super) fn size(&self) -> u64 {
        let sectors =
            self.attribute("size").and_then(|sectors| sectors.parse::<u64>().ok()).unwrap_or_default();
        sectors.saturating_mul(512)
    }

    /// Requests under way: reads, then writes.
    pub(super) fn inflight(&self) -> u64 {
        let counts = self.attribute("inflight").unwrap_or_default();
        counts.split_whitespace().filter_map(|count| count.parse::<u64>().ok()).fold(0, u64::saturating_add)
    }

    /// How long the block layer gives a request; `None` where it does not say (before Linux 5.0).
    pub(super) fn request_timeout(&self) -> Option<Duration> {
        Some(Duration::from_millis(self.attribute("queue/io_timeout")?.parse().ok()?))
    }

    /// The block devices on top of it.
    pub(super) fn holders(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.0.join("holders")) else { return Vec::new() };
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Sets an attribute of the request queue.
    pub(super) fn set_queue(&self, name: &str, value: u32) -> Result<(), Error> {
        let path = self.0.join("queue").join(name);
        fs::write(&path, value.to_string()).map_err(|source| {
            let context = format!("cannot write {value} to {}: {source}", path.display());
            Error::new(ErrorKind::Other, context)
        })
    }
}

fn indices_in(directory: &Path) -> io::Result<Vec<u32>> {
    let mut indices = Vec::new();
    for entry in fs::read_dir(directory)? {
        // Partitions (nbd0p1) are no directories here, and would not parse.
        let name = entry?.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd"));
        indices.extend(index.and_then(|index| index.parse::<u32>().ok()));
    }
    indices.sort_unstable();
    Ok(indices)
}

#[cfg(test)]
mod tests;
